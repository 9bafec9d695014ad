"""DiT: a transformer over latents that is told a class of ImageNet, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.index import part_of
from gate.backbones.pipeline import PipelineBackbone
from gate.errors import UnsuitableError
from gate.request import Conditioning, Request


class DiT(PipelineBackbone):
    """Peebles & Xie 2023. It is told the class that stands for none, of its training without guidance; it predicts eps
    and variances."""

    family = "dit"
    traits = frozenset({"unconditional"})
    denoisers = frozenset({"DiTTransformer2DModel", "Transformer2DModel"})
    half = torch.float16

    @classmethod
    def serves(cls, index: Mapping[str, Any]) -> bool:
        return super().serves(index) and not part_of(index, "text_encoder")[1]

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, 0, 1))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        if any(texts):
            raise UnsuitableError(f"{self.name} takes no prompt.")
        return Conditioning(torch.zeros(len(texts), 0, 1, device=self.device), prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        none = torch.full((len(x),), int(self._config["num_embeds_ada_norm"]), device=x.device)
        output: Tensor = self.denoiser(x, timestep=t, class_labels=none, return_dict=False)[0]
        return output
