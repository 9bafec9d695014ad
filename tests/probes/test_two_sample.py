"""Two samples: no shift is one half and drives T down; large shifts that a plain test confuses stay apart."""

from __future__ import annotations

import numpy as np
import pytest

from gate.errors import ConfigurationError
from gate.mixture import T_MAX
from gate.probe import Folds, keyed_generator, make_folds
from gate.probes.two_sample import BATCH, Discriminator, TwoSample, _main_directions
from gate.sample import Sample, SampleSet
from gate.testing import check_probe

N = 32


@pytest.fixture(scope="module")
def known() -> tuple[SampleSet, Folds, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = tuple(Sample(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(N))
    samples = SampleSet(drawn)
    return samples, make_folds(samples), rng.standard_normal((N, 6, 4, 4)).astype(np.float32)


def found(known: tuple[SampleSet, Folds, np.ndarray], shift: float, **settings: float) -> tuple[float, float]:
    """Mean accuracy and mean p, of features that are moved by `shift` deviations of their means in every channel."""
    samples, folds, reference = known
    step = shift * reference.mean(axis=(2, 3)).std()
    rows = TwoSample(**settings).compare(reference + step, reference, samples, folds)  # type: ignore[arg-type]
    return float(rows[:, 0].mean()), float(rows[:, 1].mean())


def test_no_shift_is_exactly_one_half_and_p_falls_to_0(known: tuple[SampleSet, Folds, np.ndarray]) -> None:
    assert found(known, 0.0) == (0.5, 0.0)


@pytest.mark.slow
def test_other_draws_of_the_same_distribution_are_one_half_within_chance() -> None:
    """Features of their own for both sides, not a pair: the mean of six draws within its 95 % interval."""
    accuracies, levels = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        samples = SampleSet(tuple(Sample(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(64)))
        a, b = rng.standard_normal((2, 64, 6, 4, 4)).astype(np.float32)
        rows = TwoSample(seed=seed).compare(a, b, samples, make_folds(samples))
        accuracies.append(rows[:, 0].mean())
        levels.append(rows[:, 1].mean())
    error = 1.96 * np.std(accuracies, ddof=1) / np.sqrt(6)
    assert abs(np.mean(accuracies) - 0.5) <= max(error, 0.02)
    assert np.mean(levels) < 0.05


def test_t_keeps_apart_what_a_plain_test_confuses(known: tuple[SampleSet, Folds, np.ndarray]) -> None:
    """Without noise and with T held down, both shifts are told always; the T that is borne says which is larger."""
    plain = [found(known, shift, noise=0.0, kimg=1e6)[0] for shift in (4, 8)]
    assert min(plain) > 0.99
    near, far = (found(known, shift, noise=4.0)[1] for shift in (3, 8))
    assert near < far


def test_a_larger_shift_is_told_more_often_and_bears_more_noise(
    known: tuple[SampleSet, Folds, np.ndarray],
) -> None:
    rows = [found(known, shift) for shift in (0, 0.5, 1, 2)]
    assert rows == sorted(rows) and [p for _, p in rows] == sorted(p for _, p in rows)
    assert rows[0] == (0.5, 0.0) and rows[-1][0] > 0.75 and rows[-1][1] > 0.9


def test_its_gradient_is_that_of_the_logistic_loss() -> None:
    """One step against the loss: finite differences of every weight, read off Adam's first moment."""
    rng = keyed_generator("test")
    rows, t, truth = rng.standard_normal((12, 5)), rng.integers(0, T_MAX, 12), np.arange(12) % 2.0
    judge = Discriminator(5, rng)
    before = [w.copy() for w in judge.weights]

    def loss() -> float:
        logits = judge(rows, t)
        return float(np.mean(np.log1p(np.exp(logits)) - truth * logits))

    numeric = []
    for weight in judge.weights:
        slope = np.zeros(weight.size)
        for i in range(weight.size):
            value = weight.flat[i]
            ends = []
            for step in (1e-6, -1e-6):
                weight.flat[i] = value + step
                ends.append(loss())
            weight.flat[i] = value
            slope[i] = (ends[0] - ends[1]) / 2e-6
        numeric.append(slope.reshape(weight.shape))
    judge.learn(rows, t, truth)
    for (first, _), slope in zip(judge.moments, numeric, strict=True):
        np.testing.assert_allclose(first / 0.1, slope, atol=1e-7)
    assert all(not np.array_equal(a, b) for a, b in zip(before, judge.weights, strict=True))


def test_directions_span_what_the_rows_do_in_units_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.standard_normal((2, BATCH, 3)) @ rng.standard_normal((3, 10))
    directions = _main_directions(real, made + 5)
    assert directions.shape == (10, 4)
    np.testing.assert_allclose((((real - real.mean(0)) @ directions) ** 2).mean(), 1)
    assert _main_directions(np.zeros((5, 4)), np.zeros((5, 4))).shape == (4, 1)


def test_it_keeps_the_contract_and_refuses_settings_that_mean_nothing() -> None:
    report = check_probe(TwoSample)
    assert report.ok, str(report)
    with pytest.raises(ConfigurationError, match="kimg"):
        TwoSample(kimg=0)
