"""DDPM, ADM and unconditional latent diffusion: a UNet2DModel that takes no prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.beside import latent_channels
from gate.backbones.pipeline import PipelineBackbone
from gate.errors import ConfigurationError, UnsuitableError
from gate.request import Conditioning, Request


class Unconditional(PipelineBackbone):
    """unet and scheduler, and a vqvae where it is latent; else its latents are the pixels.

    A class-labelled one has no class for "any": each image's own label is what it is told, so what probes of the class
    find in its features was put there.
    """

    family = "unconditional"
    traits = frozenset({"unconditional", "classes"})
    denoisers = frozenset({"UNet2DModel"})
    half = torch.float16

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, 0, 1), labels=torch.zeros(1, dtype=torch.long))

    @classmethod
    def own_channels(cls, config: Mapping[str, Any]) -> int:
        return latent_channels(config)

    def describe(self, texts: Sequence[str]) -> Conditioning:
        if any(texts):
            raise UnsuitableError(f"{self.name} takes no prompt.")
        return Conditioning(torch.zeros(len(texts), 0, 1, device=self.device), prompts=tuple(texts))

    def labelled(self, neutral: Conditioning, labels: Sequence[int | None]) -> Conditioning:
        count = int(self._config.get("num_class_embeds") or 0)
        if not count:
            return neutral
        known = [label for label in labels if label is not None and label < count]
        if len(known) < len(labels):
            raise ConfigurationError(
                f"{self.name} needs one of its {count} classes for every image and has none for any; sort the images "
                "into a folder per class, in the order of the model's classes, or load a model without."
            )
        return neutral.replace(labels=torch.tensor(known, device=self.device))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        labels = given.labels if self._config.get("num_class_embeds") else None
        output: Tensor = self.denoiser(x, t, class_labels=labels, return_dict=False)[0]
        return output
