"""Stable Diffusion 3 and 3.5: a joint transformer over image and text tokens; it predicts the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request

TOKENS = 256  # of the T5 encoder


class StableDiffusion3(PipelineBackbone):
    """Esser et al. 2024. Two CLIP encoders side by side, then T5's tokens; zeros where T5 is left out."""

    family = "sd3"
    denoisers = frozenset({"SD3Transformer2DModel"})

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(
            torch.empty(1, 77 + TOKENS, config["joint_attention_dim"]),
            torch.empty(1, config["pooled_projection_dim"]),
        )

    def describe(self, texts: Sequence[str]) -> Conditioning:
        (first, pooled), (second, pooled_2) = self.clip_states(texts), self.clip_states(texts, "_2")
        width = int(self._config["joint_attention_dim"])
        if "text_encoder_3" in self.encoders:
            t5, _ = self.t5_states(texts, TOKENS, "_3", masked=False)
        else:
            t5 = first.new_zeros(len(texts), TOKENS, width)
        clip = torch.cat([first, second], dim=-1)
        embeds = torch.cat([pad(clip, (0, width - clip.shape[-1])), t5.to(clip)], dim=1)
        return Conditioning(embeds, torch.cat([pooled, pooled_2], dim=-1), prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        output: Tensor = self.denoiser(
            x,
            encoder_hidden_states=given.prompt_embeds,
            pooled_projections=given.pooled,
            timestep=t,
            return_dict=False,
        )[0]
        return output
