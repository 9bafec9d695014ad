"""What another draw of training images does to a probe: influences against finite differences and planted lies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gate.probe import make_folds
from gate.probes.linear import Linear
from gate.probes.pixel_linear import PixelLinear
from gate.ranking.comparison import Comparison
from gate.ranking.entry import Evidence, Weights
from gate.ranking.rank import rank
from gate.ridge import blurred, one_hot_ridge
from gate.sample import Sample, SampleSet

CLASSES, SIDE = 4, 8


def data(n: int) -> SampleSet:
    """Images with a label, and a mask with a rectangle of class label + 1 on ground 0."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(n):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(0, SIDE // 2, 2)
        mask[top : top + SIDE // 2, left : left + SIDE // 2] = 1 + i % CLASSES
        image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        samples.append(Sample(image, label=i % CLASSES, mask=mask))
    names = tuple(f"class {i}" for i in range(CLASSES))
    return SampleSet(tuple(samples), classes=names, mask_classes=("ground", *names))


def features(samples: SampleSet, signal: float) -> np.ndarray:
    """Noise, and `signal` times a direction of the class that the mask shows there, (n, 24, SIDE, SIDE)."""
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((CLASSES + 1, 24))
    planted = np.moveaxis(directions[np.stack([s.mask for s in samples.samples])], -1, 1)
    return (signal * planted + rng.standard_normal(planted.shape)).astype(np.float32)


@pytest.mark.parametrize("columns", [5, 90], ids=["fewer columns than rows", "more"])
def test_influence_is_the_derivative_by_a_rows_weight(columns):
    rng = np.random.default_rng(1)
    rows, y = rng.standard_normal((60, columns)), rng.permutation([0] * 40 + [2] * 15 + [3] * 5)
    slopes, totals = rng.standard_normal((2, columns, 3)), rng.standard_normal((2, 3))
    design, onehot = np.column_stack([rows, np.ones(60)]), (y[:, None] == [0, 2, 3]).astype(float)
    penalty = 4.0 * np.diag([1.0] * columns + [0.0])

    def figures(row: int, kept: float) -> np.ndarray:
        w = np.array([20 / (y == v).sum() for v in y])
        w[row] *= kept
        found = np.linalg.solve(design.T @ (w[:, None] * design) + penalty, design.T @ (w[:, None] * onehot))
        return (found[:-1] * slopes).sum(axis=(1, 2)) + (found[-1] * totals).sum(axis=1)

    fit = one_hot_ridge(rows, y, 4.0, balanced=True)
    fitted = fit.of_rows(rows, y)
    got = fit.influence(fitted, slopes, totals)
    expected = [(figures(i, 1 - 1e-5) - figures(i, 1 + 1e-5)) / 2e-5 for i in range(60)]
    np.testing.assert_allclose(got, np.transpose(expected), rtol=1e-4, atol=1e-7)
    shares = rng.standard_normal((4, 60))  # the other way round: figures of what the solution moves by
    by_weights, by_bias = fit.without(fitted, shares)
    moved = np.einsum("sck,rck->sr", by_weights, slopes) + by_bias @ totals.T
    np.testing.assert_allclose(moved, shares @ got.T, rtol=1e-9)


def test_a_blurred_decision_slopes_as_it_says_and_equal_responses_have_none():
    rng = np.random.default_rng(2)
    response, slope = rng.standard_normal((2, 3, 4, 5))
    width = 0.4 * response.std(axis=1).mean(axis=1)[:, None, None]

    def figure(r: np.ndarray) -> float:
        share = np.exp(r / width)
        return float((slope * share / share.sum(axis=1, keepdims=True)).sum())

    got = blurred(response, slope, 0.4)
    for at in ((0, 1, 2), (2, 3, 4)):
        step = np.zeros_like(response)
        step[at] = 1e-6
        assert got[at] == pytest.approx((figure(response + step) - figure(response - step)) / 2e-6, rel=1e-4)
    assert not blurred(np.ones((1, 3, 2)), rng.standard_normal((1, 3, 2)), 0.4).any()


@pytest.mark.parametrize("cls", [PixelLinear, Linear])
def test_without_samples_that_teach_wrongly_the_error_would_fall(cls):
    wrong = [3, 10, 17, 24]
    samples = data(n=48)
    told = list(samples.samples)
    for i in wrong:
        other = (told[i].label + 1) % CLASSES
        told[i] = dataclasses.replace(told[i], label=other, mask=np.where(told[i].mask > 0, other + 1, 0))
    lied = dataclasses.replace(samples, samples=tuple(told))
    x, folds = features(samples, 0.8), make_folds(lied)
    counts, change = cls().judge(x, lied, folds)
    np.testing.assert_array_equal(counts, cls().evaluate(x, lied, folds))
    assert change[wrong].mean() < 0 < np.delete(change, wrong).mean()


def test_a_probe_that_writes_evaluate_alone_judges_by_it():
    class Halved(PixelLinear):
        def evaluate(self, features, samples, folds):
            return super().evaluate(features, samples, folds) // 2

    samples = data(n=16)
    x, folds = features(samples, 0.5), make_folds(samples)
    values, change = Halved().judge(x, samples, folds)
    np.testing.assert_array_equal(values, PixelLinear().evaluate(x, samples, folds) // 2)
    assert change is None


def test_a_resample_moves_an_error_by_the_influence_of_what_it_counts_otherwise():
    # two samples, one class right and one wrong each: 4 counts a sample, balanced accuracy 1/2, error 1/2
    counts = np.tile(np.array([[1.0, 0], [1, 0]]), (2, 1, 1, 1))
    vanilla = Evidence({}, {"linear": counts}, {"linear": np.array([[0.1], [-0.1]])})
    technique = Evidence({}, {"linear": counts}, {"linear": np.array([[0.2], [0.0]])})
    comparison = Comparison(
        vanilla, {"t": technique}, {"linear": Linear()}, Weights(0.0, 1.0), (), ("linear",)
    )
    drawn = np.array(
        [[1.0, 1], [2, 0], [0, 2], [1, 0]]
    )  # as they are, the first twice, the second twice, one left out
    # vanilla 1/2, 1/2 - 0.1 - 0.1 = 0.3, 0.7, 1/2 - 0.1 = 0.4; technique 1/2, 1/2 - 0.2 = 0.3, 0.7, 0.5
    np.testing.assert_allclose(comparison.quantities(drawn)[0], [0, 0, 0, 1 - 0.5 / 0.4], atol=1e-12)


def score_of(probe, evidence):
    """The score's interval of a technique beside vanilla, by one probe. evidence: both, (columns, refits or None)."""
    vanilla, technique = (
        Evidence({}, {probe.name: c[:, None]}, None if j is None else {probe.name: j[:, None]})
        for c, j in evidence
    )
    measures = {probe.name: probe}
    ranking = rank(
        vanilla, {"t": technique}, measures=measures, score_metrics=(), score_probes=tuple(measures), seed=0
    )
    return ranking.entries[0].score


def test_the_interval_of_a_probe_holds_the_spread_of_its_refits():
    samples = data(n=40)
    folds, probe = make_folds(samples), PixelLinear()
    both = [probe.judge(features(samples, signal), samples, folds) for signal in (0.3, 0.36)]
    with_refits, without = score_of(probe, both), score_of(probe, [(c, None) for c, _ in both])
    assert 1.01 < (with_refits.high - with_refits.low) / (without.high - without.low) < 2
