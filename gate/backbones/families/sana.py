"""Sana: a linear-attention transformer under a Gemma text encoder, on 32x compressed latents; flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request

TOKENS = 300


class Sana(PipelineBackbone):
    """Xie et al. 2024. The long instruction that its pipeline puts before a prompt is left out."""

    family = "sana"
    denoisers = frozenset({"SanaTransformer2DModel"})

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, TOKENS, config["caption_channels"]))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        self.tokenizer.padding_side = "right"
        states, mask = self.t5_states([text.lower().strip() for text in texts], TOKENS)
        return Conditioning(states, mask=mask, prompts=tuple(texts))

    @property
    def _sprint(self) -> bool:
        """Of SANA-Sprint, whose pipeline tells sigma as it is."""
        return "Sprint" in str(self.index.get("_class_name"))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        guided = (
            x.new_ones(len(x)) * self._config["guidance_embeds_scale"]
            if self._config["guidance_embeds"]
            else None
        )
        output: Tensor = self.denoiser(
            x,
            encoder_hidden_states=given.prompt_embeds,
            timestep=t * (1.0 if self._sprint else self._config["timestep_scale"]),
            guidance=guided,
            encoder_attention_mask=given.mask,
            return_dict=False,
        )[0]
        return output
