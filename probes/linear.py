"""Which class an image shows, read linearly from its pooled features."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gate.measure import confusion_slope
from gate.probe import Folds, Probe, classify
from gate.ridge import Ridge, blurred, one_hot_ridge
from gate.sample import SampleSet

Array = npt.NDArray[Any]
ALPHA = 1000.0  # tens of rows, a thousand columns: without a strong ridge the fit only memorises
BLUR = 1.0  # one decision an image needs more than hundreds do; meets the spread of refits at n = 32 and 64


class Linear(Probe):
    """Ridge classifier on the mean and maximum of every channel, standardised on the training fold.

    Classes weigh equally in the fit. alpha: strength of the ridge, > 0, in units of standardised columns.
    """

    name = "linear"
    summary = "Class of the image from its pooled features, by a ridge classifier"
    source = "Linear probes: Alain & Bengio 2016 (arXiv 1610.01644); ridge in closed form"
    needs = "labels"
    figure = "balanced-accuracy"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, *, alpha: float = ALPHA) -> None:
        self.alpha = alpha

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        return self._fitted(features, samples, folds)[0]

    def judge(self, features: Array, samples: SampleSet, folds: Folds) -> tuple[Array, Array]:
        counts, fits = self._fitted(features, samples, folds)
        slopes = confusion_slope(counts.sum(axis=0), "balanced-accuracy")
        truth, change = counts.sum(axis=2).argmax(axis=1), np.zeros(len(counts))
        for (train, test), (fit, rows, labels, judged) in zip(folds, fits, strict=True):
            response = (judged @ fit.weights + fit.bias).T[None]  # (1, k', m)
            blur = blurred(response, slopes[truth[test]][:, fit.present].T[None], BLUR)[0]
            slope, total = judged.T @ blur.T, blur.sum(axis=1)
            change[train] += fit.influence(fit.of_rows(rows, labels), slope[None], total[None])[0]
        return counts, change

    def _fitted(
        self, features: Array, samples: SampleSet, folds: Folds
    ) -> tuple[npt.NDArray[np.int64], list[tuple[Ridge, Array, Array, Array]]]:
        """Counts, and of each fold the ridge with its rows, their labels, and the rows judged."""
        fits = []

        def predict(train: Array, labels: Array, test: Array) -> Array:
            fit = one_hot_ridge(train, labels, self.alpha, balanced=True)
            fits.append((fit, train, labels, test))
            guess: Array = fit.present[(test @ fit.weights + fit.bias).argmax(axis=1)]
            return guess

        return classify(features, samples, folds, predict), fits
