"""DDPM, ADM and unconditional latent diffusion: a UNet2DModel that takes no prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.pipeline import PipelineBackbone
from gate.errors import UnsuitableError
from gate.request import Conditioning, Request


class Unconditional(PipelineBackbone):
    """unet and scheduler, and a vqvae where it is latent; else its latents are the pixels."""

    family = "unconditional"
    traits = frozenset({"unconditional"})
    denoisers = frozenset({"UNet2DModel"})
    half = torch.float16

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, 0, 1))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        if any(texts):
            raise UnsuitableError(f"{self.name} takes no prompt.")
        return Conditioning(torch.zeros(len(texts), 0, 1, device=self.device), prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        output: Tensor = self.denoiser(x, t, return_dict=False)[0]
        return output
