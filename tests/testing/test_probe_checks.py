"""check_probe lets every probe of ours through, and names what is wrong with each wrong one."""

import numpy as np
import pytest

from gate.probe import Probe, label_counts, pooled, require_truth
from gate.testing import check_probe


class Centroid(Probe):
    """A right probe, nearest class mean; each wrong one below differs in the one thing that its check is for."""

    name = "centroid"
    summary = "class of the image from the nearest mean of a class"
    source = "these tests"

    def evaluate(self, features, samples, folds):
        k = require_truth(samples, features, folds, "labels")
        truth = np.array([s.label for s in samples])
        return label_counts(truth, self.predicted(pooled(features), truth, folds, k), k)

    def predicted(self, rows, truth, folds, k):
        predicted = np.empty_like(truth)
        for train, test in folds:
            means = np.stack([rows[train][truth[train] == c].mean(axis=0) for c in range(k)])
            predicted[test] = np.square(rows[test][:, None] - means).sum(axis=2).argmin(axis=1)
        return predicted


class Spread(Probe):
    """A right probe without truth and with a figure of its own."""

    name = "spread"
    summary = "how far the loudest position of a channel stands out"
    source = "these tests"
    needs = ""
    figure = ""
    direction = "lower"

    def evaluate(self, features, samples, folds):
        first = features.reshape(*features.shape[:2], -1)[:, :3].max(axis=1)
        return 1 / (1 + np.square(first).mean(axis=1))


class Peeks(Centroid):
    name = "peeks"

    def predicted(self, rows, truth, folds, k):
        return truth.copy()


class Guesses(Centroid):
    name = "guesses"

    def predicted(self, rows, truth, folds, k):
        return np.zeros_like(truth)


class Dice(Centroid):
    name = "dice"

    def predicted(self, rows, truth, folds, k):
        return np.random.default_rng().integers(0, k, len(truth))


class Rates(Centroid):
    name = "rates"

    def evaluate(self, features, samples, folds):
        return super().evaluate(features, samples, folds) / 2


class Writes(Centroid):
    name = "writes"

    def evaluate(self, features, samples, folds):
        features -= features.mean()
        return super().evaluate(features, samples, folds)


class ByPlace(Centroid):
    name = "by-place"

    def predicted(self, rows, truth, folds, k):
        found = super().predicted(rows, truth, folds, k)
        found[::4] = 0
        return found


class Negative(Spread):
    name = "negative"

    def error_of_sums(self, sums, n):
        return -super().error_of_sums(sums, n)


class HidesNan(Spread):
    name = "hides-nan"

    def evaluate(self, features, samples, folds):
        return super().evaluate(np.nan_to_num(features), samples, folds)


@pytest.mark.parametrize("name", ["knn", "linear", "pixel-linear"])
def test_ours_keep_the_contract(name):
    check_probe(name).raise_for_failures()


@pytest.mark.parametrize("right", [Centroid, Spread])
def test_with_and_without_truth_passes(right):
    check_probe(right).raise_for_failures()


@pytest.mark.parametrize(
    ("wrong", "invariant"),
    [
        (Peeks, "a sample is judged where it did not train"),
        (Guesses, "features that hold the truth beat noise"),
        (Dice, "deterministic, and writes to nothing that it is given"),
        (Rates, "one row a sample, finite"),
        (Writes, "one row a sample, finite"),
        (ByPlace, "the order of samples changes nothing"),
        (Negative, "errors of resamples"),
        (HidesNan, "NaN is refused, not learned from"),
    ],
)
def test_what_is_wrong_is_named(wrong, invariant):
    assert invariant in [f.invariant for f in check_probe(wrong).failures]
