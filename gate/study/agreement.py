"""How far a cheap order agrees with the true one. Predictions (..., T), truth (T,); vanilla, at 0, is not in T."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def spearman(predicted: Array, truth: Array) -> Array:
    """Spearman's rank correlation with midranks, (...), in [-1, 1]; 0 where either does not vary."""
    from scipy.stats import rankdata

    a = rankdata(predicted, axis=-1)
    b = rankdata(truth)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean()
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum())
    return np.asarray((a @ b) / np.where(scale > 0, scale, 1))


def kendall(predicted: Array, truth: Array) -> Array:
    """Kendall's tau-b, (...), in [-1, 1]; 0 where either does not vary."""
    i, j = np.triu_indices(predicted.shape[-1], 1)
    a = np.sign(predicted[..., i] - predicted[..., j])
    b = np.sign(truth[i] - truth[j])
    scale = np.sqrt((a != 0).sum(axis=-1) * (b != 0).sum())
    return np.asarray((a @ b) / np.where(scale > 0, scale, 1))


def top1_regret(predicted: Array, points: Array) -> Array:
    """What is lost by taking the predicted best, vanilla where none is predicted above 0. points: (T,) over vanilla.
    Returns (...) >= 0, in the units of `points`."""
    best = max(float(points.max(initial=0.0)), 0.0)
    chosen = predicted.argmax(axis=-1)
    gained = np.where(predicted.max(axis=-1) > 0, points[chosen], 0.0)
    return np.asarray(best - gained)


def top3_recall(predicted: Array, truth: Array, k: int = 3) -> Array:
    """Share of the true top k among the predicted top k, (...), in [0, 1]."""
    ours, true = _top(predicted, k), _top(truth, k)
    return np.asarray((ours & true).sum(axis=-1) / true.sum())


def best_in_top3(predicted: Array, truth: Array, k: int = 3) -> Array:
    """Whether the true best is among the predicted top k, (...), 0 or 1."""
    return np.asarray(_top(predicted, k)[..., int(truth.argmax())].astype(np.float64))


def _top(values: Array, k: int) -> Array:
    """Which are the k largest; earlier ones win ties."""
    order = np.argsort(-values, axis=-1, kind="stable")[..., : min(k, values.shape[-1])]
    found = np.zeros(values.shape, np.bool_)
    np.put_along_axis(found, order, True, axis=-1)
    return found


def signs_right(predicted: Array, sign: Array) -> Array:
    """Share of the techniques whose true sign is settled (sign is not 0) that are predicted on the right side of 0,
    (...); NaN where none is settled."""
    settled = sign != 0
    if not settled.any():
        return np.full(predicted.shape[:-1], np.nan)
    return np.asarray((np.sign(predicted[..., settled]) == sign[settled]).mean(axis=-1))


def stability(predicted: Array) -> float:
    """Mean Spearman correlation between draws. predicted: (draws, T). NaN of a single draw."""
    d = len(predicted)
    if d < 2:
        return float("nan")
    pairs = [float(spearman(predicted[i + 1 :], predicted[i]).sum()) for i in range(d - 1)]
    return sum(pairs) / (d * (d - 1) / 2)
