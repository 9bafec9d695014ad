"""Ridge regression in closed form: what linear probes fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def moments(rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, (c,) each; a column that does not vary has 1."""
    mean, std = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    std[std <= 10 * np.finfo(rows.dtype).eps * np.abs(mean)] = 1
    std[std == 0] = 1
    return mean.astype(rows.dtype), std.astype(rows.dtype)


def balanced_ridge(rows: Array, y: Array, alpha: float) -> tuple[Array, Array, Array]:
    """Ridge regression onto one-hot classes that weigh equally, in closed form; the highest response wins.

    Minimises sum_i w_i ||x_i W + b - e(y_i)||^2 + alpha ||W||^2 with w_i = m / (k' count(y_i)), which is what
    scikit-learn's Ridge and RidgeClassifier solve under "balanced" weights, and checks take most of their time. Solved
    through the smaller of the two Gram matrices. rows: (m, c) float32, standardised; y: (m,) int. Returns W (c, k'), b
    (k',) and the k' classes that occur.
    """
    from scipy.linalg import solve

    present, index, count = np.unique(y, return_inverse=True, return_counts=True)
    weight = (len(y) / (len(present) * count))[index].astype(rows.dtype)
    targets = np.eye(len(present), dtype=rows.dtype)[index]
    centre, level = (np.average(x, axis=0, weights=weight).astype(rows.dtype) for x in (rows, targets))
    root = np.sqrt(weight)[:, None]
    x, t = (rows - centre) * root, (targets - level) * root
    m, c = x.shape
    gram = x.T @ x if c <= m else x @ x.T
    gram.flat[:: len(gram) + 1] += alpha
    if c <= m:
        weights = solve(gram, x.T @ t, assume_a="pos", check_finite=False, overwrite_a=True)
    else:
        weights = x.T @ solve(gram, t, assume_a="pos", check_finite=False, overwrite_a=True)
    return weights, level - centre @ weights, present
