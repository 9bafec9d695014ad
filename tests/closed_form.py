"""A backbone that can be worked out by hand: two channels, linear in everything, noise that is one number.

x0 = (1, 0) at every position of every sample, a = 0.8 and s = 0.6 at t = 1, and the noise of seed 0 is 1 everywhere, of
seed 1 it is 3. So x_t = (0.8 + 0.6 e, 0.6 e) is (1.4, 0.6) and (2.6, 1.8). The denoiser predicts eps_hat = x_t / 2; its
one layer is x_t plus the number that the prompt stands for (none: 0).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gate.backbone import Backbone, LayerInfo
from gate.request import Conditioning, Request
from gate.sample import Sample, SampleSet
from gate.schedule import NoiseSchedule

SIDE = 2
UNIT = 128 / 255  # of a pixel's value: latent 1
NOISE = {0: 1.0, 1: 3.0}


class Halver(nn.Module):
    """eps_hat = x_t / 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class ClosedForm(Backbone):
    """See above. Latents are the red and green of the image in units of 128."""

    family = "unet"
    name = "closed-form"
    image_size = SIDE
    device = torch.device("cpu")
    dtype = torch.float32
    source = Path(__file__)
    tokenizer = None

    def __init__(self) -> None:
        self.denoiser = Halver()
        self.schedule = NoiseSchedule(
            torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64),
            torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64),
            "epsilon",
        )

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :2] / UNIT

    def decode(self, x0: Tensor) -> Tensor:
        return torch.cat([x0 * UNIT, torch.zeros_like(x0[:, :1])], 1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[[float(text or 0)]] for text in texts])

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(self.encode_texts(prompts), prompts=tuple(prompts))

    def prompts_anew(self, tokenizer: Any = None, text_encoder: Any = None) -> Any:
        return contextlib.nullcontext()

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"unet": self.denoiser}

    @property
    def layer_paths(self) -> dict[str, str]:
        return {"sum": "sum"}

    def layers(self) -> list[LayerInfo]:
        return [LayerInfo("sum", "sum", 2, 1, "sum")]

    def activate(self, request: Request, layers: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        prediction: Tensor = self.denoiser(request.x_t)
        told = request.conditioning.prompt_embeds[:, :, :, None]
        return prediction, {layer: request.x_t + told for layer in layers}

    def fingerprint(self) -> str:
        return "closed-form"


def flat_samples(n: int = 12) -> SampleSet:
    """n images of latent (1, 0), told apart by their blue; labels 0, 1, 0, 1 ..."""
    images = np.zeros((n, SIDE, SIDE, 3), np.uint8)
    images[..., 0] = 128
    images[..., 2] = np.arange(n)[:, None, None]
    samples = tuple(Sample(image, label=i % 2) for i, image in enumerate(images))
    return SampleSet(samples, name="flat", classes=("left", "right"))


@pytest.fixture
def known_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of a seed is one number, whatever the sample."""
    monkeypatch.setattr("gate.request.sample_noise", lambda _, seed, shape: torch.full(shape, NOISE[seed]))
