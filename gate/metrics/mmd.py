"""Maximum mean discrepancy between the features of all samples and their references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gate.metric import Metric, as_float, same_shape

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
DIMENSIONS = 32  # numbers a feature is cut to, as many as InfoDiffusion's code has


def kernel(x: Array, y: Array) -> Doubles:
    """exp(-mean_d((x - y)^2) / d), InfoVAE's and InfoDiffusion's kernel. x: (n, d), y: (m, d) -> (n, m) in (0, 1]."""
    d = x.shape[1]
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.asarray(np.exp(-np.maximum(squares, 0) / d**2))


def squared_mmd(x: Array, y: Array, weights: Array) -> Doubles:
    """||mean_w phi(x) - mean_w phi(y)||^2, the V-statistic, >= 0, of paired rows. x, y: (n, d). weights: (..., n)."""
    rows = np.concatenate([x, y])
    share = weights / weights.sum(axis=-1, keepdims=True)
    signed = np.concatenate([share, -share], axis=-1)
    found = ((signed @ kernel(rows, rows)) * signed).sum(axis=-1)
    return np.asarray(np.maximum(found, 0))


class Mmd(Metric):
    """Squared MMD between the sets {F} and {F_ref}: whether shifted features could be those of other clean images.

    Each feature is averaged over positions and projected to 32 numbers, the same fixed random directions for every
    sample; both sides are standardised by the reference's moments over the set, then kernel exp(-mean_d((x - y)^2) / d)
    (Wang et al. 2023, who hold the prior against their code with it; of features it is ours). It is a
    statistic of the set: every resample has its own.
    """

    name = "mmd"
    summary = "Squared maximum mean discrepancy between features and references, over the samples"
    source = "Wang et al. 2023, InfoDiffusion (arXiv 2306.08757); Gretton et al. 2012"
    unit = "squared distance of mean embeddings"
    direction = "lower"
    range = (0.0, 2.0)
    compares = "feature"
    columns_each = 2 * DIMENSIONS
    standard = False
    weakness = (
        "Compares sets: features that trade places among samples have no distance, and the wide kernel sees little "
        "beyond means."
    )

    def shift(self, features: Tensor, reference: Tensor) -> Tensor:
        import torch

        same_shape(features, reference, "Feature and reference")
        features, reference = as_float(features, reference)
        c = features.shape[1]
        drawn = np.random.default_rng(c).standard_normal((c, DIMENSIONS)) / np.sqrt(c)
        directions = torch.from_numpy(drawn).to(features)
        return torch.cat([f.mean(dim=(2, 3)) @ directions for f in (features, reference)], dim=1)

    def error_of_set(self, columns: Array, multiplicities: Array) -> Doubles:
        made, real = columns[:, :DIMENSIONS], columns[:, DIMENSIONS:]
        std = real.std(axis=0)
        std[std == 0] = 1
        mean = real.mean(axis=0)
        return squared_mmd((made - mean) / std, (real - mean) / std, multiplicities)
