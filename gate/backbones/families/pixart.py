"""PixArt alpha and sigma: a transformer with cross-attention to a T5 text encoder; it predicts eps and variances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request


class PixArt(PipelineBackbone):
    """Chen et al. 2023 and 2024. The 1024 px alpha models are told resolution and aspect ratio."""

    family = "pixart"
    denoisers = frozenset({"PixArtTransformer2DModel"})

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, 120, config["caption_channels"] or config["cross_attention_dim"]))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        tokens = 300 if "Sigma" in str(self.index.get("_class_name")) else 120
        states, mask = self.t5_states([text.lower().strip() for text in texts], tokens)
        return Conditioning(states, mask=mask, prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        sizes: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            side = float(self.image_size)
            sizes["resolution"] = torch.tensor([[side, side]]).to(x).expand(len(x), -1)
            sizes["aspect_ratio"] = torch.ones(len(x), 1).to(x)
        output: Tensor = self.denoiser(
            x,
            encoder_hidden_states=given.prompt_embeds,
            encoder_attention_mask=given.mask,
            timestep=t,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        return output
