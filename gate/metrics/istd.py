"""Interpolation standard deviation: how evenly images change while their noise does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, as_float

if TYPE_CHECKING:
    from torch import Tensor


class Istd(Metric):
    """Standard deviation of the distances between neighbours on a path of images; the mean over samples is ISTD.

    Two noises are interpolated at 0, 0.1 ... 1, each of the 11 latents is sampled, and of the 10 L2 distances between
    neighbouring images (pixels in [0, 1]) the standard deviation is taken, over n, not n - 1. Only the first
    `--image-samples` samples are asked, as for reconstructions.
    """

    name = "istd"
    summary = "Standard deviation of the steps between images whose noise is interpolated evenly"
    source = "Guo et al. 2024, Smooth Diffusion (arXiv 2312.04410), section 4"
    unit = "L2 distance of images in [0, 1]"
    compares = "path"
    standard = False
    scale_invariant = False
    weakness = "A model that answers every noise with the same image is perfectly smooth; it says nothing of the input."

    def spread(self, frames: Tensor) -> Tensor:
        (frames,) = as_float(frames)
        steps = (frames[:, 1:] - frames[:, :-1]).flatten(2).norm(dim=2)
        return steps.std(dim=1, correction=0)
