"""The paper's own metric: difference of Laplacian magnitudes (Meng et al. 2024, Eq. 1-2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, as_float, kept, length, same_shape

if TYPE_CHECKING:
    from torch import Tensor


def laplacian(f: Tensor) -> Tensor:
    """Discrete Laplacian with four neighbours, (b, c, h, w) -> (b, c, h, w).

    The paper gives neither kernel nor padding. The kernel is [[0, 1, 0], [1, -4, 1], [0, 1, 0]]. The border
    repeats (Neumann), so that every position of Eq. 1's sum counts, a constant is invisible everywhere, also
    at the border, and maps of a few positions still have a value; zero padding would turn an offset into an
    edge. A map that is linear in space is 0 in its interior and shows its slope on the border. Same as
    scipy.ndimage.laplace in its default mode.
    """
    import torch

    lap = torch.zeros_like(f)
    step = f[..., 1:] - f[..., :-1]  # each step pulls at the positions on both its sides
    lap[..., :-1] += step
    lap[..., 1:] -= step
    step = f[..., 1:, :] - f[..., :-1, :]
    lap[..., :-1, :] += step
    lap[..., 1:, :] -= step
    return lap


def laplacian_difference(f: Tensor, f_ref: Tensor) -> Tensor:
    """Eq. 1: sum over positions of | ||Lap(F_ref)[:, i, j]||_2 - ||Lap(F)[:, i, j]||_2 |.

    f, f_ref: (b, c, h, w). Returns (b,) float32 or float64 in [0, inf), in units of the feature.
    """
    same_shape(f, f_ref, "Feature and reference")
    f, f_ref = as_float(f, f_ref)
    magnitude, magnitude_ref = (kept(x, "laplacian", laplacian_magnitude) for x in (f, f_ref))
    return (magnitude_ref - magnitude).abs().sum(dim=(1, 2, 3))


def laplacian_magnitude(f: Tensor) -> Tensor:
    """||Lap(F)[:, i, j]||_2, (b, c, h, w) -> (b, 1, h, w)."""
    return length(laplacian(f))


class Laplacian(Metric):
    """Eq. 1 as printed. With vanilla's shift as anchor, the share of it that is gone is Eq. 2."""

    name = "laplacian"
    summary = "Difference of Laplacian magnitudes to the reference, as the paper prints it"
    source = "Meng et al. 2024 (arXiv 2410.06719), Eq. 1-2"
    unit = "feature units, summed over positions"
    direction = "lower"
    compares = "feature"
    scale_invariant = False
    weakness = (
        "Follows the feature's scale, so shrinking a noisy feature looks like suppression; blind to permuted "
        "channels and flipped signs; loud channels drown quiet ones."
    )

    def shift(self, features: Tensor, reference: Tensor) -> Tensor:
        return laplacian_difference(features, reference)
