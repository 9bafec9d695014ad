"""Additive moments of positions, per sample: what ridges, LogME and the H-score of any draw of samples are made of.

A position is a row of c features with a class. Sums of products over the rows of one sample add up over samples, so
they are made once per technique, and every draw, fold and penalty after that is arithmetic on c x c matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.probe import chunks

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Moments:
    """Of labelled rows x (c,) with classes 0 ... k - 1, per sample or summed.

    gram: (..., c, c), sum of x x^T. sums: (..., c, k), sum of x by class. counts: (..., k), rows by class.
    """

    gram: Array
    sums: Array
    counts: Array

    def of(self, rows: Array) -> Moments:
        """Summed over some samples, in float64. rows: indices."""
        gram, sums, counts = (
            x[rows].sum(axis=0, dtype=np.float64) for x in (self.gram, self.sums, self.counts)
        )
        return Moments(gram, sums, counts)

    def minus(self, other: Moments) -> Moments:
        return Moments(self.gram - other.gram, self.sums - other.sums, self.counts - other.counts)

    @property
    def n(self) -> float:
        """Rows in all."""
        return float(self.counts.sum())

    @property
    def mean(self) -> Array:
        """(c,)"""
        found: Array = self.sums.sum(axis=1) / self.n
        return found

    @property
    def scatter(self) -> Array:
        """sum (x - mean)(x - mean)^T, (c, c)."""
        found: Array = self.gram - self.n * np.outer(self.mean, self.mean)
        return found


def moments_of(features: Array, truth: Array, k: int, chosen: Array | None = None) -> Moments:
    """Per sample. features: (n, c, h, w). truth: (n, h w) int, -1 = unlabelled. chosen: (n, h w), rows that count."""
    n, c = features.shape[:2]
    gram = np.empty((n, c, c), np.float32)
    sums = np.empty((n, c, k), np.float32)
    known = (truth >= 0) if chosen is None else (truth >= 0) & chosen
    one_hot = (np.eye(k + 1, dtype=np.float32)[np.where(known, truth, k)])[..., :k]  # (n, p, k)
    for part, maps in chunks(features):
        x = maps.reshape(len(maps), c, -1) * known[part][:, None]
        gram[part] = x @ x.swapaxes(1, 2)
        sums[part] = x @ one_hot[part]
    return Moments(gram, sums, one_hot.sum(axis=1))


@dataclass(frozen=True, eq=False)
class Regression:
    """A ridge onto one-hot classes, unweighted. rows @ weights (c, k) + bias (k,)."""

    weights: Array
    bias: Array

    def squared_errors(self, moments: Moments) -> Array:
        """sum over a sample's rows of ||x W + b - e(y)||^2, (n,), of moments per sample."""
        w, b = self.weights, self.bias
        rows = moments.sums.sum(axis=-1)  # (n, c)
        quadratic = np.einsum("nkc,ck->n", w.T @ moments.gram, w, optimize=True)
        cross = np.einsum("nck,ck->n", moments.sums, w, optimize=True) + moments.counts @ b
        total = moments.counts.sum(axis=-1)
        found: Array = quadratic + 2 * rows @ (w @ b) + total * (b @ b) - 2 * cross + total
        return found


def fit_regression(moments: Moments, alpha: float) -> Regression:
    """Ridge regression onto one-hot classes on standardised columns, every row counting alike, from summed moments.

    Minimises sum_i ||x_i W + b - e(y_i)||^2 + alpha ||W||^2, the bias free. A column that does not vary is left out.
    Equal to scikit-learn's Ridge on standardised rows.
    """
    from scipy.linalg import cho_factor, cho_solve

    n, mean = moments.n, moments.mean
    scatter = moments.scatter
    variance = np.diag(scatter) / n
    varies = variance > 1e-10 * np.maximum(np.diag(moments.gram) / n, 1e-30)
    std = np.sqrt(np.where(varies, variance, 1))
    level = moments.counts / n
    cross = (moments.sums - np.outer(mean, moments.counts)) / std[:, None] * varies[:, None]
    gram = scatter / np.outer(std, std) * np.outer(varies, varies)
    gram.flat[:: len(gram) + 1] += alpha
    weights = cho_solve(cho_factor(gram, check_finite=False), cross, check_finite=False) / std[:, None]
    return Regression(weights, level - mean @ weights)
