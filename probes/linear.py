"""Which class an image shows, read linearly from its pooled features."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gate.probe import Folds, Probe, label_counts, pooled, require_truth
from gate.sample import SampleSet

ALPHA = 1000.0  # tens of rows, a thousand columns: without a strong ridge the fit only memorises


class Linear(Probe):
    """Ridge classifier on the mean and maximum of every channel, standardised on the training fold.

    Classes weigh equally in the fit. alpha: strength of the ridge, > 0, in units of standardised columns.
    """

    name = "linear"
    summary = "Class of the image from its pooled features, by a ridge classifier"
    source = "Linear probes: Alain & Bengio 2016 (arXiv 1610.01644); sklearn.linear_model.RidgeClassifier"
    needs = "labels"
    figure = "balanced-accuracy"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, *, alpha: float = ALPHA) -> None:
        self.alpha = alpha

    def evaluate(self, features: npt.NDArray[Any], samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        from sklearn.linear_model import RidgeClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        k = require_truth(samples, features, folds, "labels")
        rows = pooled(features)
        truth = np.array([s.label for s in samples])
        predicted = np.empty_like(truth)
        for train, test in folds:
            if len(np.unique(truth[train])) == 1:
                predicted[test] = truth[train[0]]  # one class alone: no boundary to fit
                continue
            model = make_pipeline(
                StandardScaler(), RidgeClassifier(alpha=self.alpha, class_weight="balanced")
            )
            predicted[test] = model.fit(rows[train], truth[train]).predict(rows[test])
        return label_counts(truth, predicted, k)
