"""Error of the predicted noise: free with the forward pass that yields the features (Li et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, as_float, same_shape

if TYPE_CHECKING:
    from torch import Tensor


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||^2 over channels and positions, as a mean. a, b: (b, c, h, w). Returns (b,), >= 0."""
    same_shape(a, b, "Prediction and truth")
    a, b = as_float(a, b)
    return (a - b).square().mean(dim=(1, 2, 3))


class Eps(Metric):
    """||eps - eps_hat||^2. With alpha_bar the signal's share of variance, the error of the reconstruction is
    this one times (1 - alpha_bar) / alpha_bar: at a given timestep both give the same suppression."""

    name = "eps"
    summary = "Mean squared error of the predicted noise, which needs no reference pass"
    source = (
        "Ho et al. 2020 (arXiv 2006.11239), Eq. 14; to rank conditions: Li et al. 2023 (arXiv 2303.16203)"
    )
    unit = "squared noise units, mean over the latent"
    direction = "lower"
    compares = "prediction"
    scale_invariant = False
    weakness = (
        "Sees the denoiser's output, not the layers that are used as features; differences are a percent or "
        "less, so only a paired comparison shows them."
    )

    def error(self, *, eps: Tensor, eps_hat: Tensor, x0: Tensor, x0_hat: Tensor) -> Tensor:
        return mean_squared_error(eps_hat, eps)
