"""Eq. 1 on maps that are divided by the reference's per-channel standard deviation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, as_float, kept, same_shape
from gate.metrics.laplacian import laplacian_difference

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = (
    0.01  # of the rms deviation over channels: a channel that is flat in the reference must not rule the sum
)


def channel_scale(f_ref: Tensor) -> Tensor:
    """Standard deviation of each channel over positions, floored, (b, c, h, w) -> (b, c, 1, 1), > 0.

    The floor is 1 % of the root mean square over the sample's channels. A reference that is flat in every
    channel (a map of one position, say) has no scale of its own and is divided by 1.
    """
    import torch

    centred = f_ref - f_ref.mean(dim=(2, 3), keepdim=True)
    std = centred.square().mean(dim=(2, 3), keepdim=True).sqrt()  # a tenth of the time of Tensor.std on a CPU
    rms = std.square().mean(dim=1, keepdim=True).sqrt()
    scale = torch.maximum(std, FLOOR * rms)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _scaled(f_ref: Tensor) -> tuple[Tensor, Tensor]:
    scale = channel_scale(f_ref)
    return scale, f_ref / scale


class LaplacianNormalised(Metric):
    """Eq. 1 with each channel in units of the reference's deviation, so that every channel speaks equally
    loud.

    Feature and reference are divided by the same scale, the reference's: rescaling both, or the backbone's
    channels, changes nothing; rescaling the feature alone still does.
    """

    name = "laplacian-normalised"
    summary = "The Laplacian difference with every channel in units of the reference's standard deviation"
    source = "Meng et al. 2024 (arXiv 2410.06719), Eq. 1; normalisation ours"
    unit = "reference standard deviations, summed over positions"
    direction = "lower"
    compares = "feature"
    scale_invariant = False
    weakness = (
        "Weighs channels equally but still follows the scale of the feature against its reference, so "
        "shrinking a noisy feature looks like suppression; blind to flipped signs."
    )

    def shift(self, features: Tensor, reference: Tensor) -> Tensor:
        same_shape(features, reference, "Feature and reference")
        features, reference = as_float(features, reference)
        scale, scaled = kept(reference, "channel-scaled", _scaled)
        return laplacian_difference(features / scale, scaled)
