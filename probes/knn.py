"""Which class an image shows, by its nearest neighbours among the others."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.probe import Folds, Probe, classify
from gate.sample import SampleSet

Array = npt.NDArray[Any]


class Knn(Probe):
    """Vote of the k nearest training samples by cosine of the pooled features, standardised on the training
    fold.

    Standardising puts the origin among the samples; without it all cosines are near 1. Votes count by 1 /
    distance, so that few samples per class do not end in ties. neighbours: how many vote, 5 unless told.
    """

    name = "knn"
    summary = "Class of the image from its nearest neighbours by cosine of pooled features"
    source = "k-nearest neighbours as a feature probe: Wu et al. 2018 (arXiv 1805.01978); sklearn.neighbors"
    needs = "labels"
    figure = "balanced-accuracy"

    def __init__(self, *, neighbours: int = 5) -> None:
        self.neighbours = neighbours

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        from sklearn import config_context
        from sklearn.neighbors import KNeighborsClassifier

        def predict(train: Array, labels: Array, test: Array) -> Array:
            vote = KNeighborsClassifier(
                min(self.neighbours, len(train)), metric="cosine", algorithm="brute", weights="distance"
            )
            quick = config_context(assume_finite=True, skip_parameter_validation=True)  # they are finite here
            with quick, warnings.catch_warnings():  # few samples of many classes is what a screen is
                warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
                guess: Array = vote.fit(train, labels).predict(test)
            return guess

        return classify(features, samples, folds, predict)
