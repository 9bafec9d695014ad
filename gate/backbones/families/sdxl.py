"""Stable Diffusion XL and kin (Playground v2): two CLIP text encoders, pooled embedding, sizes as time ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.families.unet import LatentUNet
from gate.backbones.index import part_of
from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning

AESTHETIC_SCORE = 6.0  # what the refiner is told by default


class LatentUNetXL(LatentUNet):
    """Podell et al. 2023. The empty prompt is zeros, as in training, where model_index.json says so."""

    family = "sdxl"

    @classmethod
    def serves(cls, index: Mapping[str, Any]) -> bool:
        second = part_of(index, "text_encoder_2")[1] == "CLIPTextModelWithProjection"
        return PipelineBackbone.serves.__func__(cls, index) and second  # type: ignore[attr-defined]

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        return super().blank(config).replace(pooled=torch.empty(1, pooled), time_ids=torch.empty(1, 6))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        pairs = [self.clip_states(texts, which.removeprefix("text_encoder")) for which in self.encoders]
        embeds, pooled = torch.cat([states for states, _ in pairs], dim=-1), pairs[-1][1]
        if self.index.get("force_zeros_for_empty_prompt", True):
            said = torch.tensor([bool(text) for text in texts], device=embeds.device)
            embeds, pooled = embeds * said.view(-1, 1, 1), pooled * said.view(-1, 1)
        return Conditioning(embeds, pooled, time_ids=self._time_ids(embeds), prompts=tuple(texts))

    def _time_ids(self, like: Tensor) -> Tensor:
        """(b, 6): original size, no crop, target size; the refiner's (b, 5) end with an aesthetic score."""
        size = float(self.image_size)
        last = [AESTHETIC_SCORE] if self.index.get("requires_aesthetics_score") else [size, size]
        return torch.tensor([[size, size, 0.0, 0.0, *last]]).to(like).expand(len(like), -1)

    def added(self, given: Conditioning) -> dict[str, Any]:
        return {"text_embeds": given.pooled, "time_ids": given.time_ids}
