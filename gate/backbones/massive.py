"""Massive activations of transformers: a few channels, far larger than all others, that drown every similarity.

Gan et al. 2025, DiTF (arXiv 2505.18584), find them in the same few dimensions at every position, and discard those.
"""

from __future__ import annotations

import torch
from torch import Tensor

THRESHOLD = 100.0  # times the median channel: what the literature calls massive


def massive_channels(feature: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Channels whose mean magnitude is over `threshold` times the median channel's: (b, c, h, w) -> (k,) long."""
    size = feature.detach().float().abs().mean(dim=(0, 2, 3))
    return (size > threshold * size.median()).nonzero().flatten().cpu()


def without(feature: Tensor, channels: Tensor) -> Tensor:
    """The feature with these channels at zero, so that its shape stays; the same object where there are none."""
    if not len(channels):
        return feature
    kept = torch.ones(feature.shape[1], dtype=feature.dtype, device=feature.device)
    kept[channels.to(feature.device)] = 0
    return feature * kept.view(1, -1, 1, 1)
