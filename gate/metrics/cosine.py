"""One minus the cosine between feature vectors of the same position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, as_float, kept, length, same_shape

if TYPE_CHECKING:
    from torch import Tensor


def cosine_shift(f: Tensor, f_ref: Tensor) -> Tensor:
    """1 - mean over positions of the cosine between f[:, i, j] and f_ref[:, i, j].

    f, f_ref: (b, c, h, w). Returns (b,) in [0, 2]. Computed as half the squared distance of the unit vectors,
    which is the same number without the cancellation: equal features give exactly 0, and small shifts keep
    their digits. A position where one vector is zero has cosine 0; where both are, there is no shift.
    """
    import torch

    same_shape(f, f_ref, "Feature and reference")
    f, f_ref = as_float(f, f_ref)
    (unit, zero), (unit_ref, zero_ref) = (kept(x, "unit", _unit) for x in (f, f_ref))
    half = 0.5 * (unit - unit_ref).square().sum(dim=1, keepdim=True)
    return torch.where(zero == zero_ref, half, torch.ones_like(half)).mean(dim=(1, 2, 3))


def _unit(f: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors, (b, c, h, w), and where there is none, (b, 1, h, w); NaN is not zero, and so is passed on."""
    import torch

    norm = length(f)
    zero = norm == 0
    return f / torch.where(zero, torch.ones_like(norm), norm), zero


class Cosine(Metric):
    """Direction of the feature vector, position by position."""

    name = "cosine"
    summary = "One minus the mean cosine to the reference, position by position"
    source = (
        "Cosine similarity; as used to match diffusion features by Tang et al. 2023 (DIFT, arXiv 2306.03881)"
    )
    unit = "1 - cosine"
    direction = "lower"
    range = (0.0, 2.0)
    compares = "feature"
    scale_invariant = True
    weakness = (
        "A few loud channels, or an offset shared by all positions, decide the angle and hide the rest."
    )

    def shift(self, features: Tensor, reference: Tensor) -> Tensor:
        return cosine_shift(features, reference)
