"""Balanced soft assignment to prototypes (Sinkhorn-Knopp), and prototypes fitted to rows without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

EPS, ITERATIONS = 0.05, 3  # as SwAV's and self-guidance's authors set them
ROUNDS = 20  # of assignment and mean; on a few hundred rows nothing moves after ten


def sinkhorn(scores: Array, eps: float = EPS, iterations: int = ITERATIONS) -> Doubles:
    """The plan Q, (b, k) >= 0, near exp(scores / eps), whose prototypes carry 1/k each and whose rows 1/b each.

    scores: (b, k), cosines of b rows to k prototypes. Each iteration scales prototypes first, rows last (Cuturi 2013;
    Caron et al. 2020, SwAV), so rows are exact after any number of iterations and prototypes in the limit.
    eps -> inf gives 1 / (b k) everywhere. In float64 and logarithms: no score can overflow.
    """
    b, k = scores.shape
    log_q = scores.astype(np.float64) / eps
    for _ in range(iterations):
        log_q = log_q - _log_sum(log_q, 0) - np.log(k)
        log_q = log_q - _log_sum(log_q, 1) - np.log(b)
    return np.exp(log_q)


def _log_sum(x: Doubles, axis: int) -> Doubles:
    top = x.max(axis=axis, keepdims=True)
    return np.asarray(top + np.log(np.exp(x - top).sum(axis=axis, keepdims=True)))


def unit(rows: Array) -> Doubles:
    """Rows of length 1, (b, c) float64; a row of zeros stays one."""
    wide = rows.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norm == 0, 1, norm))


def fit_prototypes(z: Doubles, k: int, *, eps: float = EPS) -> Doubles:
    """k unit prototypes, (k, c), of unit rows z, (b, c): the mean of what Sinkhorn assigns to each, until it settles.

    Starts from the row nearest to the mean and, time and again, the row farthest from those chosen, so neither a seed
    nor the order of rows matters. b >= k.
    """
    chosen = [int((z @ z.mean(axis=0)).argmax())]
    nearest = z @ z[chosen[0]]
    while len(chosen) < k:
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, z @ z[chosen[-1]])
    prototypes = z[chosen]
    for _ in range(ROUNDS):
        prototypes = unit(sinkhorn(z @ prototypes.T, eps).T @ z)
    return prototypes
