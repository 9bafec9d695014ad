"""Which class an image shows, read linearly from its pooled features."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gate.probe import Folds, Probe, classify
from gate.ridge import balanced_ridge
from gate.sample import SampleSet

Array = npt.NDArray[Any]
ALPHA = 1000.0  # tens of rows, a thousand columns: without a strong ridge the fit only memorises


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
        def predict(train: Array, labels: Array, test: Array) -> Array:
            weights, bias, present = balanced_ridge(train, labels, self.alpha)
            guess: Array = present[(test @ weights + bias).argmax(axis=1)]
            return guess

        return classify(features, samples, folds, predict)
