"""What probes read from planted and from empty features, and that comparisons stay paired."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gate.errors import ConfigurationError, NonFiniteError
from gate.measure import confusion_error, confusion_margins
from gate.probe import Folds, Probe, grid_mask, make_folds
from gate.probes.knn import Knn
from gate.probes.linear import Linear
from gate.probes.pixel_linear import PixelLinear, fit_ridge
from gate.sample import Sample, SampleSet

CLASSES, SIDE = 4, 8
EVERY: tuple[type[Probe], ...] = (Linear, Knn, PixelLinear)


def data(n: int = 32, seed: int = 0, side: int = SIDE, image_side: int = 32) -> SampleSet:
    """Images of noise with a label, and a mask with a rectangle of class label + 1 on ground 0."""
    rng = np.random.default_rng(seed)
    cell = image_side // side
    samples = []
    for i in range(n):
        mask = np.zeros((image_side, image_side), np.uint8)
        top, left = rng.integers(0, side // 2, 2) * cell
        mask[top : top + image_side // 2, left : left + image_side // 2] = 1 + i % CLASSES
        image = rng.integers(0, 256, (image_side, image_side, 3), dtype=np.uint8)
        samples.append(Sample(image, label=i % CLASSES, mask=mask))
    names = tuple(f"class {i}" for i in range(CLASSES))
    return SampleSet(tuple(samples), classes=names, mask_classes=("ground", *names))


def features(samples: SampleSet, signal: float, c: int = 24, seed: int = 1, side: int = SIDE) -> np.ndarray:
    """Noise, and `signal` times a direction of the class that the mask shows there. (n, c, side, side)
    float32."""
    rng = np.random.default_rng(seed)
    k = len(samples.mask_classes)
    directions = rng.standard_normal((k, c))
    truth = np.stack([grid_mask(s.mask, (side, side), k) for s in samples if s.mask is not None])
    planted = np.moveaxis(directions[truth], -1, 1)
    return (signal * planted + rng.standard_normal(planted.shape)).astype(np.float32)


def score(probe: Probe, x: np.ndarray, samples: SampleSet) -> float:
    counts = probe.evaluate(x, samples, make_folds(samples)).sum(axis=0)
    return float(1 - confusion_error(confusion_margins(counts), probe.figure))


@pytest.mark.parametrize("cls", EVERY)
def test_planted_features_are_read(cls):
    samples = data()
    assert score(cls(), features(samples, 3.0), samples) > 0.95


@pytest.mark.parametrize("cls", [Linear, Knn])
def test_empty_features_are_at_chance(cls):
    samples = data(n=64)
    scores = [score(cls(), features(samples, 0.0, seed=s), samples) for s in range(8)]
    assert np.mean(scores) == pytest.approx(1 / CLASSES, abs=0.06)


def test_empty_features_give_the_pixel_probe_the_iou_of_guessing():
    samples = data(n=64)
    scores = [score(PixelLinear(), features(samples, 0.0, seed=s), samples) for s in range(4)]
    k = CLASSES + 1
    share = np.array([0.75, *[0.25 / CLASSES] * CLASSES])
    guessing = (
        share / k / (share + 1 / k - share / k)
    ).mean()  # predictions uniform and independent of the truth
    assert np.mean(scores) == pytest.approx(guessing, abs=0.03)


@pytest.mark.parametrize("cls", EVERY)
def test_more_signal_reads_better(cls):
    samples = data(n=48)
    weak, strong = (score(cls(), features(samples, s), samples) for s in (0.1, 1.0))
    assert strong > weak + 0.1


@pytest.mark.parametrize("cls", EVERY)
def test_counts_are_per_sample_and_complete(cls):
    samples = data()
    counts = cls().evaluate(features(samples, 0.5), samples, make_folds(samples))
    k = len(samples.classes if cls.needs == "labels" else samples.mask_classes)
    assert counts.shape == (32, k, k)
    assert counts.dtype == np.int64
    if cls.needs == "labels":
        np.testing.assert_array_equal(counts.sum(axis=2), np.eye(k)[[s.label for s in samples]])
        return
    for count, s in zip(counts, samples, strict=True):
        np.testing.assert_array_equal(
            count.sum(axis=1), np.bincount(grid_mask(s.mask, (SIDE, SIDE), k).ravel(), minlength=k)
        )


@pytest.mark.parametrize("cls", EVERY)
def test_another_order_of_samples_only_reorders_the_counts(cls):
    samples = data()
    x = features(samples, 1.0)
    counts = cls().evaluate(x, samples, make_folds(samples))
    order = np.random.default_rng(2).permutation(32)
    shuffled = dataclasses.replace(samples, samples=tuple(samples[int(i)] for i in order))
    np.testing.assert_array_equal(cls().evaluate(x[order], shuffled, make_folds(shuffled)), counts[order])


@pytest.mark.parametrize("cls", EVERY)
def test_twice_is_the_same_and_the_features_are_left_alone(cls):
    samples = data()
    x = features(samples, 0.3)
    before = x.copy()
    folds = make_folds(samples)
    np.testing.assert_array_equal(cls().evaluate(x, samples, folds), cls().evaluate(x, samples, folds))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("cls", EVERY)
def test_a_held_out_sample_does_not_reach_its_own_model(cls):
    """Changing one sample's truth changes the answers elsewhere at most, never what is predicted for
    itself."""
    samples = data()
    x, folds = features(samples, 0.3), make_folds(samples)
    plain = cls().evaluate(x, samples, folds)
    first = samples[0]
    liar = dataclasses.replace(first, label=3, mask=np.zeros_like(first.mask))
    changed = dataclasses.replace(samples, samples=(liar, *samples.samples[1:]))
    lied = cls().evaluate(x, changed, folds)
    np.testing.assert_array_equal(lied[0].sum(axis=0), plain[0].sum(axis=0))


def test_pixel_linear_without_subsampling_is_the_plain_scikit_learn_pipeline():
    samples = data(n=16)
    x, folds, k = features(samples, 0.3), make_folds(samples), CLASSES + 1
    rows = np.moveaxis(x, 1, -1).astype(np.float64)  # (n, h, w, c)
    truth = np.stack([grid_mask(s.mask, (SIDE, SIDE), k) for s in samples])
    expected = np.zeros((16, k, k), dtype=int)
    for train, test in folds:
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=7.0, class_weight="balanced"))
        model.fit(rows[train].reshape(-1, x.shape[1]), truth[train].ravel())
        for i in test:
            np.add.at(expected[i], (truth[i].ravel(), model.predict(rows[i].reshape(-1, x.shape[1]))), 1)
    probe = PixelLinear(alpha=7.0, positions=None)
    np.testing.assert_array_equal(probe.evaluate(x, samples, folds), expected)
    np.testing.assert_array_equal(
        PixelLinear(alpha=7.0, positions=SIDE**2).evaluate(x, samples, folds), expected
    )


def test_fit_ridge_solves_the_weighted_normal_equations():
    rng = np.random.default_rng(0)
    rows, y = rng.standard_normal((60, 5)) * [1, 2, 3, 4, 5] + 7, np.array([0] * 40 + [2] * 15 + [3] * 5)
    fit = fit_ridge(rows, y, 3.0, np.arange(60), np.arange(0))
    z = (rows - rows.mean(0)) / rows.std(0)
    w = np.array([60 / (3 * (y == v).sum()) for v in y])
    design = np.column_stack([z, np.ones(60)])
    penalty = 3.0 * np.diag([1, 1, 1, 1, 1, 0])
    onehot = (y[:, None] == [0, 2, 3]).astype(float)
    solution = np.linalg.solve(design.T @ (w[:, None] * design) + penalty, design.T @ (w[:, None] * onehot))
    np.testing.assert_allclose(fit.responses(rows.T[None])[0].T, design @ solution, atol=1e-8)
    assert fit.ridge.present.tolist() == [0, 2, 3]


def test_subsampling_loses_little():
    samples = data(n=48)
    x = features(samples, 0.5)
    few, every = (score(PixelLinear(positions=p), x, samples) for p in (16, None))
    assert few == pytest.approx(every, abs=0.05)


def test_positions_are_drawn_evenly_over_the_classes_a_sample_shows():
    truth = np.array([0] * 50 + [1] * 10 + [2] * 2 + [-1] * 38)
    chosen = PixelLinear(positions=14)._choose(truth, "an id")
    assert len(set(chosen)) == 14
    assert np.bincount(truth[chosen]).tolist() == [6, 6, 2]
    assert PixelLinear(positions=14)._choose(truth, "another id").tolist() != chosen.tolist()
    assert len(PixelLinear(positions=None)._choose(truth, "an id")) == 62


def test_unlabelled_positions_are_neither_learned_nor_tested():
    samples = data(n=16)
    half = tuple(
        dataclasses.replace(s, mask=np.where(np.arange(32) < 16, s.mask.astype(int), -1)) for s in samples
    )
    counts = PixelLinear().evaluate(
        features(samples, 3.0), dataclasses.replace(samples, samples=half), make_folds(samples)
    )
    assert (counts.sum(axis=(1, 2)) == SIDE * SIDE // 2).all()


@pytest.mark.parametrize("cls", EVERY)
def test_a_fold_that_lacks_classes_counts_them_as_errors(cls):
    """All samples of one class in a fold of their own: nobody can name it."""
    samples = data(n=16)
    labels = np.array([s.label for s in samples])
    counts = cls().evaluate(features(samples, 3.0), samples, Folds((labels == 0).astype(np.int64)))
    lost = 0 if cls.needs == "labels" else 1
    assert counts[labels == 0][:, lost, lost].sum() == 0


def test_one_class_alone_is_predicted():
    samples = data(n=8)
    alone = tuple(dataclasses.replace(s, label=1) for s in samples)
    counts = Linear().evaluate(
        features(samples, 1.0), dataclasses.replace(samples, samples=alone), make_folds(samples)
    )
    assert counts[:, 1, 1].tolist() == [1] * 8


@pytest.mark.parametrize("cls", EVERY)
def test_refusals(cls):
    samples = data(n=16)
    x, folds = features(samples, 1.0), make_folds(samples)
    blank = dataclasses.replace(
        samples, samples=tuple(dataclasses.replace(s, label=None, mask=None) for s in samples)
    )
    with pytest.raises(ConfigurationError, match=f"needs {cls.needs}"):
        cls().evaluate(x, blank, folds)
    unnamed = dataclasses.replace(samples, classes=("a",), mask_classes=("a",))
    with pytest.raises(ConfigurationError, match="have names"):
        cls().evaluate(x, unnamed, folds)
    x[3, 0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        cls().evaluate(x, samples, folds)


def test_a_pixel_probe_follows_its_samples_its_grid_and_what_is_labelled():
    first, second = data(seed=0), data(seed=5)
    known = PixelLinear()
    for samples in (first, second, first):  # what it keeps of one set it does not use for another
        x = features(samples, 2.0)
        again = PixelLinear().evaluate(x, samples, make_folds(samples))
        assert np.array_equal(known.evaluate(x, samples, make_folds(samples)), again)
    x = features(first, 3.0)[:, :, ::2]  # 4 x 8 positions, each of which covers two rows of the mask's grid
    counts = known.evaluate(x, first, make_folds(first))
    assert counts.sum(axis=(1, 2)).tolist() == [32] * len(first)
    assert np.trace(counts.sum(axis=0)) > 0.8 * counts.sum()
    assert Linear().alpha == PixelLinear().alpha == 1000
    bare = [dataclasses.replace(s, mask=np.full_like(s.mask, -1, dtype=np.int16)) for s in first]
    folds = make_folds(first)
    kept = tuple(s if f == 0 else b for s, b, f in zip(first, bare, folds.assignment))
    sparse = dataclasses.replace(first, samples=kept)  # held out in fold 0, and nothing is left to learn from
    counts = known.evaluate(features(first, 3.0), sparse, folds)
    assert counts.sum(axis=1)[folds.assignment == 0].sum(axis=0)[1:].sum() == 0  # class 0 everywhere
