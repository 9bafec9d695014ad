"""How far the best single channel for a class stands out before the second best: total AUROC difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gate.metric import Metric
from gate.metrics.dci import CHANNELS, coded

if TYPE_CHECKING:
    from torch import Tensor

    from gate.metric import Pass

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
CAPTURED = 0.75  # AUROC from which an attribute counts as captured


def separations(x: Array, labels: Array, weights: Array) -> Doubles:
    """max(AUROC, 1 - AUROC) of each code for each class against the rest, (..., d, k) in [0.5, 1].

    x: (n, d); labels: (n,) int; weights: (..., n), how often each row counts. A class with all rows, or none, has 0.5.
    With C_i the weight of rows below i plus half of those level with it, itself among them, and P the weight of the
    class, sum over its rows of w_i C_i = P N AUROC + P^2 / 2: one pass over sorted rows serves all classes.
    """
    truth = np.eye(int(labels.max()) + 1)[labels]
    positive = weights @ truth  # (..., k)
    pairs = positive * (weights.sum(axis=-1, keepdims=True) - positive)
    found = np.full((*weights.shape[:-1], x.shape[1], truth.shape[1]), 0.5)
    for j, column in enumerate(x.T):
        order = np.argsort(column, kind="stable")
        ranked, drawn = column[order], weights[..., order]
        below = np.concatenate([np.zeros((*drawn.shape[:-1], 1)), drawn.cumsum(axis=-1)], axis=-1)
        first, last = (np.searchsorted(ranked, ranked, side=side) for side in ("left", "right"))
        level = (below[..., first] + below[..., last]) / 2
        won = (drawn * level) @ truth[order] - positive**2 / 2
        found[..., j, :] = np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), 0.5)
    return np.maximum(found, 1 - found)


def auroc_difference(separation: Array, present: Array) -> Doubles:
    """Mean over classes of best minus second best, of those that are captured (best >= 0.75); in [0, 0.5].

    separation: (..., d, k). present: (..., k), whether a class occurs.
    """
    ranked = np.sort(separation, axis=-2)
    best, second = ranked[..., -1, :], ranked[..., -2, :]
    gap = np.where((best >= CAPTURED) & present, best - second, 0)
    return np.asarray(gap.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


class Tad(Metric):
    """Whether one channel alone tells a class, and the next best does not.

    Of each class, the AUROC of every channel (32 of them, as `dci`), best minus second best, where the best reaches
    0.75; else 0. The paper sums over attributes; the mean over classes, which compares between data sets, and channels
    for codes are ours.
    """

    name = "tad"
    summary = "How far the best channel of a class stands out before the second best, by AUROC"
    source = "Yeats et al. 2022, NashAE (arXiv 2209.10677); as used by Wang et al. 2023 (arXiv 2306.08757)"
    unit = "difference of AUROC, mean over classes"
    direction = "higher"
    range = (0.0, 0.5)
    compares = "pass"
    needs = frozenset({"features", "labels"})
    columns_each = CHANNELS + 1
    standard = False
    weakness = "Of few samples a class the best channel is chance, and two equally good ones count as none."

    def measure(self, seen: Pass) -> Tensor:
        return coded(seen)

    def error_of_set(self, columns: Array, multiplicities: Array) -> Doubles:
        x, labels = columns[:, :-1], columns[:, -1].astype(np.int64)
        present = multiplicities @ np.eye(int(labels.max()) + 1)[labels] > 0
        return np.asarray(0.5 - auroc_difference(separations(x, labels, multiplicities), present))
