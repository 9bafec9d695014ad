"""One minus linear centred kernel alignment (Kornblith et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, as_float, same_shape

if TYPE_CHECKING:
    from torch import Tensor


def linear_cka_shift(a: Tensor, b: Tensor) -> Tensor:
    """1 - linear CKA (Kornblith et al. 2019, Sec. 3, Eq. for linear kernels), batched.

    a, b: (batch, n, c) and (batch, n, d), a row per position. Returns (batch,) in [0, 1]. CKA is ||B^T
    A||_F^2 / (||A^T A||_F ||B^T B||_F) with centred columns, which equals the cosine of the n x n Gram
    matrices A A^T and B B^T; the cheaper of the two forms is taken. If one side has no variation CKA is 0, if
    neither has, the shift is 0.
    """
    a = a - a.mean(dim=1, keepdim=True)
    b = b - b.mean(dim=1, keepdim=True)
    n, c, d = a.shape[1], a.shape[2], b.shape[2]
    by_positions = n * n * (c + d) <= n * (c * c + d * d + c * d)
    return _from_positions(a, b) if by_positions else _from_channels(a, b)


def _from_positions(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos(K, L) as half the squared distance of unit Gram matrices: no cancellation at small shifts."""
    gram_a, gram_b = a @ a.mT, b @ b.mT  # (batch, n, n)
    norm_a, norm_b = gram_a.norm(dim=(1, 2)), gram_b.norm(dim=(1, 2))
    unit_a = gram_a / _or_one(norm_a)[:, None, None]
    unit_b = gram_b / _or_one(norm_b)[:, None, None]
    return _degenerate(0.5 * (unit_a - unit_b).square().sum(dim=(1, 2)), norm_a, norm_b)


def _from_channels(a: Tensor, b: Tensor) -> Tensor:
    norm_a, norm_b = (a.mT @ a).norm(dim=(1, 2)), (b.mT @ b).norm(dim=(1, 2))
    # squares of a (c, d) cross matrix pass float32's range long before its norm does
    scale = (_or_one(norm_a).double() * _or_one(norm_b).double()).sqrt()
    cka = ((b.mT @ a).norm(dim=(1, 2)).double() / scale).square()
    return _degenerate((1 - cka).clamp_min(0).to(a.dtype), norm_a, norm_b)


def _or_one(norm: Tensor) -> Tensor:
    import torch

    return torch.where(norm == 0, torch.ones_like(norm), norm)


def _degenerate(shift: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    import torch

    zero_a, zero_b = norm_a == 0, norm_b == 0
    shift = torch.where(zero_a ^ zero_b, torch.ones_like(shift), shift)
    return torch.where(zero_a & zero_b, torch.zeros_like(shift), shift)


class Cka(Metric):
    """Whether positions that resemble each other in the reference still do, whatever the channels mean."""

    name = "cka"
    summary = "One minus linear CKA to the reference, over positions"
    source = "Kornblith et al. 2019 (arXiv 1905.00414), Sec. 3, linear kernel"
    unit = "1 - CKA"
    direction = "lower"
    range = (0.0, 1.0)
    compares = "feature"
    scale_invariant = True
    weakness = (
        "Blind to any rotation of the channels and to an offset shared by all positions; led by the few "
        "directions of largest variance; biased towards 1 where channels outnumber positions."
    )

    def shift(self, features: Tensor, reference: Tensor) -> Tensor:
        same_shape(features, reference, "Feature and reference")
        features, reference = as_float(features, reference)
        return linear_cka_shift(features.flatten(2).mT, reference.flatten(2).mT)
