"""Two samples: no shift is one half and drives T down; large shifts that a plain test confuses stay apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gate.errors import ConfigurationError
from gate.mixture import T_MAX
from gate.probe import Folds, keyed_generator, make_folds
from gate.probes.two_sample import BATCH, DECAY, LEAK, RATE, Discriminator, TwoSample, _main_directions
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


def test_it_learns_by_adam_with_decoupled_decay() -> None:
    """Five steps against torch's own AdamW on the same network, float64."""
    rng = keyed_generator("adam")
    rows, t, truth = rng.standard_normal((12, 5)), rng.integers(0, T_MAX, 12), np.arange(12) % 2.0
    judge = Discriminator(5, rng)
    first, second = (torch.tensor(w.copy(), requires_grad=True) for w in judge.weights)
    optimiser = torch.optim.AdamW([first, second], lr=RATE, weight_decay=DECAY)
    given = torch.cat(
        [torch.tensor(rows), torch.tensor(t / 1000)[:, None], torch.ones(12, 1).double()], dim=1
    )
    for _ in range(5):
        hidden = torch.nn.functional.leaky_relu(given @ first, LEAK)
        logits = torch.cat([hidden, torch.ones(12, 1).double()], dim=1) @ second
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(truth)).backward()
        optimiser.step()
        np.testing.assert_allclose(judge.learn(rows, t, truth), logits.detach().numpy(), atol=1e-9)
    for ours, theirs in zip(judge.weights, (first, second), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-9)


class Watched(TwoSample):
    """Notes among which rows each batch is drawn, and what the discriminator is given to learn from."""

    def __init__(self) -> None:
        super().__init__(steps=3)
        self.among: list[frozenset[int]] = []
        self.given: list[tuple[np.ndarray, np.ndarray]] = []

    def _trained(self, real: Any, made: Any, fold: int) -> Any:
        self.given.append((real, made))
        return super()._trained(real, made, fold)

    def _drawn(self, real: Any, made: Any, among: Any, t_max: int, rng: Any) -> Any:
        self.among.append(frozenset(among.tolist()))
        return super()._drawn(real, made, among, t_max, rng)


def test_t_follows_rows_that_the_discriminator_never_learns_from(
    known: tuple[SampleSet, Folds, np.ndarray],
) -> None:
    samples, folds, reference = known
    probe = Watched()
    probe.compare(5 * reference, reference, samples, folds)
    trained = [len(train) for train, _ in folds]
    assert len(probe.given) == len(trained) and len(probe.among) == 2 * 3 * len(trained)
    for fold, (real, made) in enumerate(probe.given):
        n = trained[fold]
        [learnt] = set(probe.among[6 * fold : 6 * fold + 6 : 2])
        [apart] = set(probe.among[6 * fold + 1 : 6 * fold + 6 : 2])
        assert not learnt & apart and learnt | apart == frozenset(range(n)) and len(apart) == round(n / 4)
        assert real.shape == made.shape and len(real) == n
        np.testing.assert_allclose(
            ((real - real.mean(axis=0)) ** 2).mean(), 1
        )  # noise is in the reference's units
        np.testing.assert_allclose(made.std(axis=0) / real.std(axis=0), 5, rtol=1e-4)


def test_rows_of_both_kinds_are_drawn_apart() -> None:
    """Real and made rows of a batch are of images of their own: a pair would tell by what it shares."""
    rows = np.arange(40.0)[:, None]
    drawn, t = TwoSample(noise=0)._drawn(rows, -rows, np.arange(10, 40), 10, keyed_generator("drawn"))
    still = drawn[t == 0, 0]
    real, made = still[: len(still) // 2], -still[len(still) // 2 :]
    assert len(real) == len(made) == BATCH // 2 and not np.array_equal(real, made)
    assert min(real.min(), made.min()) >= 10 and max(real.max(), made.max()) <= 39


def test_its_error_is_what_accuracy_exceeds_chance_by() -> None:
    sums = np.array([[24.0, 3.0], [12.0, 30.0]])
    assert TwoSample().error_of_sums(sums, np.array(32)).tolist() == [0.25, 0.0]


def test_directions_span_what_the_rows_do_in_units_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.standard_normal((2, BATCH, 3)) @ rng.standard_normal((3, 10))
    directions = _main_directions(real, made + 5)
    assert directions.shape == (10, 4)
    np.testing.assert_allclose((((real - real.mean(0)) @ directions) ** 2).mean(), 1)
    small = _main_directions(real / 100, made / 100)
    np.testing.assert_allclose((((real - real.mean(0)) / 100 @ small) ** 2).mean(), 1)
    assert _main_directions(np.zeros((5, 4)), np.zeros((5, 4))).shape == (4, 1)


def test_it_keeps_the_contract_and_refuses_settings_that_mean_nothing() -> None:
    report = check_probe(TwoSample)
    assert report.ok, str(report)
    for wrong in ({"kimg": 0}, {"steps": 0}, {"noise": -0.1}):
        with pytest.raises(ConfigurationError, match="kimg"):
            TwoSample(**wrong)
