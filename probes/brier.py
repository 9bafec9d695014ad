"""How far the linear reading of an image's class is from the truth: a squared error, no decision."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gate.measure import Direction, Figure
from gate.probe import (
    Folds,
    Probe,
    brier_error,
    pooled,
    random_signs,
    require_truth,
    sketches,
    standardised,
)
from gate.probes.linear import ALPHA
from gate.ridge import Ridge, one_hot_ridge
from gate.sample import SampleSet

Array = npt.NDArray[Any]


class Brier(Probe):
    """Ridge regression onto one-hot labels from mean and maximum of every channel, judged by its squared error.

    What `pixel-brier` is to `pixel-linear`, this is to `linear`: images weigh equally, and no decision is taken.
    alpha: strength of the ridge, > 0, in units of standardised columns.
    """

    name = "brier"
    summary = "Squared error of a linear reading of the image's class (Brier score of ridge regression)"
    source = "Brier 1950 (Monthly Weather Review 78:1); ridge in closed form"
    needs = "labels"
    figure: ClassVar[Figure | Literal[""]] = ""
    direction: ClassVar[Direction] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __init__(self, *, alpha: float = ALPHA) -> None:
        self.alpha = alpha

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> Array:
        """(n, 3): squared error, 1, and the error of the training fold's class shares."""
        return self._fitted(features, samples, folds)[0]

    def judge(self, features: Array, samples: SampleSet, folds: Folds) -> tuple[Array, Array]:
        columns, fits = self._fitted(features, samples, folds)
        signs = random_signs(samples, folds)
        change = np.zeros((len(columns), 1 + len(signs)))
        for (train, test), (fit, rows, labels, judged, residual) in zip(folds, fits, strict=True):
            count = 2 * np.concatenate([np.ones((1, len(test))), signs[:, test]])
            slope = np.matmul(judged.T, count[:, :, None] * residual)
            fitted = fit.of_rows(rows, labels)
            told = fit.influence(fitted, slope, count @ residual).T
            by_weights, by_bias = fit.without(fitted, signs[:, train])
            moved = np.einsum("mk,rmk->mr", 2 * residual, judged @ by_weights + by_bias[:, None])
            change[train] += np.concatenate([told[:, :1], sketches(told[:, 1:])], axis=1)
            change[test, 1:] += sketches(moved)
        return columns, change / len(columns)

    def error_of_sums(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        return brier_error(sums)

    def blind_error(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        return brier_error(sums[..., [2, 1]])

    def _fitted(
        self, features: Array, samples: SampleSet, folds: Folds
    ) -> tuple[npt.NDArray[np.float64], list[tuple[Ridge, Array, Array, Array, Array]]]:
        """Columns, and of each fold the ridge, its rows and labels, the rows judged and their residuals."""
        k = require_truth(samples, features, folds, "labels")
        rows, truth = pooled(features), np.array([s.label for s in samples])
        one_hot = np.eye(k)[truth]
        columns, fits = np.ones((len(truth), 3)), []
        for train, test, seen, judged in standardised(rows, folds):
            fit = one_hot_ridge(seen, truth[train], self.alpha, balanced=False)
            residual = judged @ fit.weights + fit.bias - one_hot[test][:, fit.present]
            unseen = ~np.isin(truth[test], fit.present)  # their response is 0
            columns[test, 0] = (residual**2).sum(axis=1) + unseen
            columns[test, 2] = ((one_hot[train].mean(axis=0) - one_hot[test]) ** 2).sum(axis=1)
            fits.append((fit, seen, truth[train], judged, residual))
        return columns, fits
