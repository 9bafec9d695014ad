"""HunyuanDiT: a transformer under a BERT and a T5 text encoder; it predicts v and variances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request


class HunyuanDiT(PipelineBackbone):
    """Li et al. 2024. Both encoders' tokens lie one after the other in prompt_embeds, the narrower padded."""

    family = "hunyuan-dit"
    denoisers = frozenset({"HunyuanDiT2DModel"})

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        n = config["text_len"] + config["text_len_t5"]
        width = max(config["cross_attention_dim"], config["cross_attention_dim_t5"])
        return Conditioning(torch.empty(1, n, width), mask=torch.ones(1, n))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        bert, bert_mask = self.t5_states(texts, self._config["text_len"])
        t5, t5_mask = self.t5_states(texts, self._config["text_len_t5"], "_2")
        width = max(bert.shape[-1], t5.shape[-1])
        embeds = torch.cat([pad(e, (0, width - e.shape[-1])) for e in (bert, t5)], dim=1)
        return Conditioning(embeds, mask=torch.cat([bert_mask, t5_mask], dim=1), prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        config, n = self._config, self._config["text_len"]
        assert given.mask is not None
        size = float(self.image_size)
        sizes = torch.tensor([[size, size, size, size, 0.0, 0.0]]).to(x).repeat(len(x), 1)
        output: Tensor = self.denoiser(
            x,
            t.to(x),
            encoder_hidden_states=given.prompt_embeds[:, :n, : config["cross_attention_dim"]],
            text_embedding_mask=given.mask[:, :n],
            encoder_hidden_states_t5=given.prompt_embeds[
                :, n:, : config["cross_attention_dim_t5"]
            ].contiguous(),
            text_embedding_mask_t5=given.mask[:, n:],
            image_meta_size=sizes,
            style=torch.zeros(len(x), dtype=torch.long, device=x.device),
            image_rotary_emb=self._rotary(x),
            return_dict=False,
        )[0]
        return output

    def _rotary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary positions, stretched over the grid that 512 px have: the model's own way to other sizes."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed

        config = self._config
        base = 512 // 8 // config["patch_size"]
        grid = (x.shape[-2] // config["patch_size"], x.shape[-1] // config["patch_size"])
        made: tuple[Tensor, Tensor] = get_2d_rotary_pos_embed(
            config["attention_head_dim"], ((0, 0), (base, base)), grid, device=x.device, output_type="pt"
        )
        return made
