"""What encodes images and nothing else, a few thousand weights of it, and a count of what it encodes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from gate.backbones.codec import Codec


class Counting:
    """Counts the images that a backbone encodes."""

    def __init__(self, backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        plain = backbone.encode

        def encode(images: torch.Tensor) -> torch.Tensor:
            self.images += len(images)
            return plain(images)

        monkeypatch.setattr(backbone, "encode", encode)


class Small(Codec):
    """A VAE of a few thousand weights and what a backbone says beside it."""

    name, image_size, dtype = "small", 16, torch.float32

    def __init__(self) -> None:
        from diffusers import AutoencoderKL

        self.device = torch.device("cpu")
        torch.manual_seed(0)
        self.vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.5,
        ).eval()

    def _awake(self, *parts: str) -> Any:
        return contextlib.nullcontext()
