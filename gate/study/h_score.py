"""H-score: how far classes lie apart in features, in units of the features' own covariance (Bao et al. 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gate.study.moments import Moments

Array = npt.NDArray[Any]
SHRINKAGE = 0.1  # towards the mean variance: fewer rows than columns leave a covariance without an inverse


def h_score(moments: Moments, shrinkage: float = SHRINKAGE) -> float:
    """tr(cov(f)^-1 cov(E[f | y])) of summed moments (Bao et al. 2019, Def. 2), in [0, classes - 1]. Higher is better.

    The covariance is shrunk as in Ibrahim et al. 2021, by a fixed share instead of Ledoit and Wolf's estimate, the same
    for all techniques: (1 - a) cov + a mean(variance) I. At 0 it is the original.
    """
    from scipy.linalg import solve

    n, mean = moments.n, moments.mean
    present = moments.counts > 0
    counts = moments.counts[present]
    centred = moments.sums[:, present] / counts - mean[:, None]  # (c, k)
    covariance = moments.scatter / n
    level = np.trace(covariance) / len(covariance)
    if level <= 0:
        return 0.0
    shrunk = (1 - shrinkage) * covariance
    shrunk.flat[:: len(shrunk) + 1] += shrinkage * level
    between = (centred * (counts / n)) @ centred.T
    found = (1 - shrinkage) * np.trace(solve(shrunk, between, assume_a="pos", check_finite=False))
    return float(found)


def moments_of_rows(rows: Array, y: Array, k: int) -> Moments:
    """Summed moments of labelled rows. rows: (n, c); y: (n,) int in 0 ... k - 1."""
    x = rows.astype(np.float64)
    one_hot = np.eye(k)[y]
    return Moments(x.T @ x, x.T @ one_hot, one_hot.sum(axis=0))
