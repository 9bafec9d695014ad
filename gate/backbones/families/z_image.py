"""Z-Image: one stream of image and Qwen3 tokens, time running from noise (0) to image (1); flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request

TOKENS = 512


class ZImage(PipelineBackbone):
    """Z-Image Team 2025. The denoiser takes lists, one image and one prompt each, and predicts x0 - eps."""

    family = "z-image"
    denoisers = frozenset({"ZImageTransformer2DModel"})
    patch = 2

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, TOKENS, config["cap_feat_dim"]))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        chats = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            for text in texts
        ]
        ids, mask = self.tokenize(chats, TOKENS)
        states = self.text_encoder(
            input_ids=ids, attention_mask=mask.bool(), output_hidden_states=True
        ).hidden_states[-2]
        return Conditioning(states, mask=mask, prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        prompts = list(given.prompt_embeds)
        if given.mask is not None:
            prompts = [row[kept.bool()] for row, kept in zip(prompts, given.mask, strict=True)]
        images = list(x[:, :, None].unbind(0))
        output = self.denoiser(images, 1 - t.float() / 1000, prompts, return_dict=False)[0]
        return -torch.stack(list(output))[:, :, 0]
