"""Squared errors of linear readings: against scikit-learn, against chance, and what a resample does to them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from test_refits import CLASSES, SIDE, data, features

from gate.probe import Folds, Probe, make_folds, pooled
from gate.probes.brier import Brier
from gate.probes.pixel_brier import PixelBrier
from gate.ranking.chance import beats_chance

BOTH: tuple[type[Probe], ...] = (PixelBrier, Brier)


def error(probe: Probe, x: np.ndarray[Any, Any], samples: Any) -> float:
    columns = probe.evaluate(x, samples, make_folds(samples))
    return float(probe.error_of_sums(columns.sum(axis=0), np.array(len(columns))))


def standardised(train: Any, test: Any) -> tuple[Any, Any]:
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def test_of_positions_it_is_scikit_learns_ridge_and_its_squared_error() -> None:
    samples = data(n=16)
    x = features(samples, 0.5).astype(np.float64)
    truth = np.stack([s.mask.ravel() for s in samples])
    rows, expected = np.moveaxis(x, 1, -1).reshape(16, -1, 24), np.zeros(16)
    for train, test in make_folds(samples):
        seen, judged = standardised(rows[train].reshape(-1, 24), rows[test].reshape(-1, 24))
        fit = Ridge(alpha=7.0).fit(seen, np.eye(CLASSES + 1)[truth[train].ravel()])
        off = (fit.predict(judged) - np.eye(CLASSES + 1)[truth[test].ravel()]) ** 2
        expected[test] = off.sum(axis=1).reshape(len(test), -1).sum(axis=1)
    got = PixelBrier(alpha=7.0, positions=None).evaluate(x, samples, make_folds(samples))
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-9)
    assert (got[:, 1] == SIDE * SIDE).all()


def test_of_labels_it_is_scikit_learns_ridge_and_its_squared_error() -> None:
    samples = data(n=16)
    x, labels = features(samples, 0.5), np.array([s.label for s in samples])
    rows, expected = pooled(x).astype(np.float64), np.zeros(16)
    for train, test in make_folds(samples):
        seen, judged = standardised(rows[train], rows[test])
        fit = Ridge(alpha=7.0).fit(seen, np.eye(CLASSES)[labels[train]])
        expected[test] = ((fit.predict(judged) - np.eye(CLASSES)[labels[test]]) ** 2).sum(axis=1)
    got = Brier(alpha=7.0).evaluate(x, samples, make_folds(samples))
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-4)
    assert (got[:, 1] == 1).all()


@pytest.mark.parametrize("cls", BOTH)
def test_without_anything_to_read_it_is_the_error_of_the_class_shares(cls: type[Probe]) -> None:
    samples = data(n=32)
    probe = cls(alpha=1e12)  # type: ignore[call-arg]  # all weights 0: the bias alone, which is the shares
    columns = probe.evaluate(features(samples, 1.0), samples, make_folds(samples))
    if cls is PixelBrier:  # the shares of the positions drawn to train on
        np.testing.assert_allclose(columns[:, 0], columns[:, 2], rtol=1e-5)
    else:
        np.testing.assert_allclose(columns[:, 0], columns[:, 2], rtol=1e-5)
        # 24 train, 6 of each class: ||(1/4, 1/4, 1/4, 1/4) - e||^2 = 3/4
        np.testing.assert_allclose(columns[:, 2], 0.75)


@pytest.mark.parametrize("cls", BOTH)
def test_more_signal_has_less_error_and_a_perfect_reading_almost_none(cls: type[Probe]) -> None:
    samples = data(n=48)
    probe = cls(alpha=1.0)  # type: ignore[call-arg]
    none, weak, strong, plain = (error(probe, features(samples, s), samples) for s in (0.0, 0.3, 1.0, 30.0))
    assert none > weak > strong > plain
    assert plain < 0.1


@pytest.mark.parametrize("cls", BOTH)
def test_noise_does_not_beat_chance_and_signal_does(cls: type[Probe]) -> None:
    samples = data(n=32)
    folds = make_folds(samples)
    blind, seeing = (cls().evaluate(features(samples, s), samples, folds)[:, None] for s in (0.0, 2.0))
    assert not beats_chance(cls(), blind, seed=0)
    assert beats_chance(cls(), seeing, seed=0)


def test_a_class_that_training_lacks_is_an_error_of_its_own() -> None:
    samples = data(n=16)
    labels = np.array([s.label for s in samples])
    folds = Folds(labels.astype(np.int64))  # each class is held out with its fold: nobody can name it
    for cls in BOTH:
        columns = cls().evaluate(features(samples, 1.0), samples, folds)
        lacking = 1 if cls is Brier else SIDE * SIDE // 4  # the rectangle's positions
        assert (columns[:, 0] >= lacking).all()


def test_unlabelled_positions_are_neither_learned_nor_judged() -> None:
    samples = data(n=16)
    half = tuple(
        dataclasses.replace(s, mask=np.where(np.arange(SIDE) < SIDE // 2, s.mask.astype(int), -1))
        for s in samples
    )
    part = dataclasses.replace(samples, samples=half)
    x, folds = features(samples, 3.0), make_folds(samples)
    loud = np.where(np.arange(SIDE) < SIDE // 2, x, 1e3).astype(np.float32)
    columns = PixelBrier().evaluate(x, part, folds)
    assert (columns[:, 1] == SIDE * SIDE // 2).all()
    np.testing.assert_allclose(PixelBrier().evaluate(loud, part, folds), columns, rtol=1e-5)


@pytest.mark.parametrize("cls", BOTH)
def test_influences_foretell_what_training_without_a_sample_does(cls: type[Probe]) -> None:
    """To first order: their sum over a fold's samples, each left out in turn, against refits with weights beside 1."""
    samples, probe = data(n=40), cls()
    x, folds = features(samples, 0.5), make_folds(samples)
    columns, change = probe.judge(x, samples, folds)
    np.testing.assert_array_equal(columns, probe.evaluate(x, samples, folds))
    assert change is not None

    def without(i: int) -> float:
        """The error of all samples, those of other folds judged without sample i."""
        total = columns.copy()
        own = folds.assignment[i]
        for fold in set(folds.assignment) - {own}:
            kept = [j for j in range(40) if j != i and folds.assignment[j] != fold]
            test = [j for j in range(40) if folds.assignment[j] == fold]
            order = kept + test
            part = dataclasses.replace(samples, samples=tuple(samples[j] for j in order))
            split = Folds(np.array([0] * len(kept) + [1] * len(test)))
            total[test] = probe.evaluate(x[order], part, split)[len(kept) :]
        return float(probe.error_of_sums(total.sum(axis=0), np.array(40)))

    whole = float(probe.error_of_sums(columns.sum(axis=0), np.array(40)))
    exact = np.array([without(i) - whole for i in range(0, 40, 4)])
    told = change[::4, 0]
    # standardisation, which an influence holds still, follows each of 30 images and takes back a third of what it does;
    # each of 960 positions it does not follow
    close, wide = (0.95, 0.25) if cls is PixelBrier else (0.85, 0.6)
    assert np.corrcoef(exact, told)[0, 1] > close
    assert told.std() == pytest.approx(exact.std(), rel=wide)
