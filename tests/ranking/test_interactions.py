"""What hangs on pairs of images, a trained with a judged one: told by sketches, and counted once."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from gate.measure import Measure, share_removed, share_slopes
from gate.probe import SKETCHES, Folds, Probe, make_folds, random_signs
from gate.probes.brier import Brier
from gate.probes.linear import Linear
from gate.probes.pixel_brier import PixelBrier
from gate.probes.pixel_linear import PixelLinear
from gate.ranking.comparison import Comparison
from gate.ranking.entry import Evidence, Weights
from gate.ranking.statistics import studentise
from tests.probes.test_refits import data, features, score_of

WITHIN = Weights(0.0, 1.0)


class Mean(Measure):
    """An error that is the mean of one column."""

    name = "mean"


def planted(
    rng: np.random.Generator, n: int, own: float, pair: float, *, mutual: bool = False, signs: int = 64
) -> Evidence:
    """n images, each trained on and judged: the error is 1 + the mean of each image's own part, spread `own`, and of a
    part of each pair, spread `pair` times sqrt(n); mutual: an image does to another what that does to it."""
    a = own * rng.standard_normal(n)
    c = pair * np.sqrt(n) * rng.standard_normal((n, n))  # trained on, judged
    if mutual:
        c = np.tril(c) + np.tril(c, -1).T
    s = rng.choice((-1.0, 1.0), (n, signs))
    rest = c - c.mean(axis=0) - c.mean(axis=1, keepdims=True) + c.mean()
    changes = np.column_stack([c.sum(axis=1), (rest + rest.T) @ s / np.sqrt(2)]) / -(n**2)  # without an image
    return Evidence({}, {"mean": (1 + a + c.mean(axis=0))[:, None]}, {"mean": changes[:, None, :]})


def comparison_of(vanilla: Evidence, techniques: dict[str, Evidence]) -> Comparison:
    return Comparison(vanilla, techniques, {"mean": Mean()}, WITHIN, (), ("mean",))


def still(n: int) -> Evidence:
    """Vanilla whose error is 1, whatever the images."""
    return Evidence({}, {"mean": np.ones((n, 1))}, {"mean": np.zeros((n, 1, 65))})


@pytest.mark.parametrize(
    ("own", "pair", "mutual"),
    [(0.05, 0.0, False), (0.0, 0.05, False), (0.05, 0.05, False), (0.05, 0.05, True)],
)
def test_a_jackknife_counts_pairs_twice_and_the_error_that_is_told_once(
    own: float, pair: float, mutual: bool
) -> None:
    """The variance over draws is (own^2 + pair^2) / n, and pairs add twice that where what they do is mutual; the
    jackknife's expectation has the pairs' part twice."""
    rng, n, draws = np.random.default_rng(0), 24, 300
    plain, once, scores = [], [], []
    for _ in range(draws):
        comparison = comparison_of(still(n), {"t": planted(rng, n, own, pair, mutual=mutual)})
        parts = comparison.interactions()
        for found, interactions in ((plain, None), (once, parts)):
            one = studentise(comparison.quantities, n, resamples=20, seed=0, interactions=interactions)
            found.append(one.error[0] ** 2)
        scores.append(one.value[0])
    of_pairs = pair**2 * (2 if mutual else 1)
    wanted = (own**2 + of_pairs) / n
    assert np.var(scores) == pytest.approx(wanted, rel=0.25)
    assert np.mean(plain) == pytest.approx((own**2 + 2 * of_pairs) / n, rel=0.12)
    assert np.mean(once) == pytest.approx(
        wanted, rel=0.2
    )  # where pairs are all there is, no more than half is cut


def test_what_two_techniques_share_is_no_part_of_their_difference() -> None:
    rng, n = np.random.default_rng(1), 16
    one, other = planted(rng, n, 0.1, 0.1), planted(rng, n, 0.1, 0.1)
    comparison = comparison_of(still(n), {"a": one, "b": one, "c": other})
    found = comparison.interactions()
    assert found.shape == (3 * comparison.block + 3,)
    alone, pairs = found[: 3 * comparison.block : comparison.block], found[3 * comparison.block :]
    assert (alone > 0).all() and alone[0] == alone[1]
    assert pairs[0] == pytest.approx(0, abs=1e-20)  # a and b
    assert pairs[1] == pairs[2] == pytest.approx(alone[0] + alone[2], rel=0.6)


def test_a_technique_that_is_vanilla_has_none_and_one_without_sketches_has_none_told() -> None:
    rng, n = np.random.default_rng(2), 16
    one, bare = planted(rng, n, 0.1, 0.1), planted(rng, n, 0.1, 0.1)
    assert bare.refits is not None
    bare = dataclasses.replace(bare, refits={"mean": bare.refits["mean"][..., 0]})
    comparison = comparison_of(one, {"same": one, "bare": bare})
    np.testing.assert_allclose(comparison.interactions(), 0, atol=1e-20)


def test_of_several_probes_the_mean_is_told() -> None:
    """Both sketches by the same signs: the mean of equal ones is itself, and without one of two a quarter is told."""
    rng, n = np.random.default_rng(4), 16
    one = planted(rng, n, 0.1, 0.1)
    names = ("mean", "again")

    def twice(of: Evidence, second: bool = True) -> Evidence:
        assert of.counts is not None and of.refits is not None
        known = names if second else names[:1]
        return Evidence(
            {}, dict.fromkeys(names, of.counts["mean"]), {name: of.refits["mean"] for name in known}
        )

    measures = dict.fromkeys(names, Mean())

    def told(second: bool) -> np.ndarray:
        pair = twice(still(n), second), {"t": twice(one, second)}
        found: np.ndarray = Comparison(*pair, measures, WITHIN, (), names).interactions()
        return found

    both, first = told(True), told(False)
    score, _, gain, *each = both
    assert score == pytest.approx(gain) == pytest.approx(each[0]) == pytest.approx(each[1]) and score > 0
    assert first[2] == pytest.approx(gain / 4) and first[4] == 0


def test_no_more_than_half_is_taken_off_and_p_agrees_with_the_interval() -> None:
    rng, n = np.random.default_rng(3), 32
    values = rng.standard_normal(n) + 0.4

    def mean(counts: np.ndarray) -> np.ndarray:
        return (counts @ values / counts.sum(axis=-1))[None]

    plain, half = (
        studentise(mean, n, resamples=999, seed=0, interactions=i) for i in (None, np.array([np.inf]))
    )
    assert half.error[0] == pytest.approx(plain.error[0] / np.sqrt(2))
    np.testing.assert_array_equal(half.resampled, plain.resampled)
    assert half.p[0] < plain.p[0]
    for found in (plain, half):
        assert (found.p[0] <= 0.05) == found.intervals()[0].excludes(0.0)


def test_a_share_slopes_as_it_says_cells_without_an_error_included() -> None:
    error, vanilla = np.array([0.3, 0.5, 0.0, 0.2]), np.array([0.6, 0.4, 0.0, 0.0])  # the last is skipped
    slopes = share_slopes(error, vanilla)
    for which in (0, 1):
        for cell in (0, 1):
            step = np.zeros(4)
            step[cell] = 1e-6
            up, down = (
                share_removed(*(x + sign * step * (which == i) for i, x in enumerate((error, vanilla))))
                for sign in (1, -1)
            )
            assert slopes[which][cell] == pytest.approx((up - down) / 2e-6, rel=1e-5)
    assert not slopes[0][2:].any() and not slopes[1][2:].any()


def test_signs_belong_to_the_image_and_cancel_in_each_fold() -> None:
    samples = data(n=21)
    folds = make_folds(samples)
    found = random_signs(samples, folds)
    assert found.shape == (SKETCHES, 21)
    for _, test in folds:
        np.testing.assert_allclose(found[:, test].sum(axis=1), 0, atol=1e-12)
    order = np.random.default_rng(0).permutation(21)
    mixed = dataclasses.replace(samples, samples=tuple(samples[int(i)] for i in order))
    np.testing.assert_allclose(random_signs(mixed, Folds(folds.assignment[order])), found[:, order])


@pytest.mark.parametrize("cls", [Brier, PixelBrier])
def test_sketches_are_of_what_each_trained_image_does_to_each_judged(
    cls: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, probe = data(n=24), cls()
    x, folds = features(samples, 0.5), make_folds(samples)
    signs = random_signs(samples, folds)
    columns, told = probe.judge(x, samples, folds)
    assert told is not None and told.shape == (24, 1 + SKETCHES)

    parts: list[
        np.ndarray
    ] = []  # of each fold: what is done by images, one column a judged one, and the same to images
    monkeypatch.setattr(sys.modules[cls.__module__], "random_signs", lambda *_: np.eye(24))
    for name in ("gate.probes.brier", "gate.probes.pixel_linear"):
        monkeypatch.setattr(sys.modules[name], "sketches", lambda part: parts.append(part) or part)
    probe.judge(x, samples, folds)
    wanted, every = np.zeros((24, SKETCHES)), np.zeros((24, 24))
    for (train, test), by, to in zip(folds, parts[::2], parts[1::2], strict=True):
        np.testing.assert_allclose(by[:, test], to[:, train].T, rtol=1e-3, atol=1e-5 * np.abs(by).max())
        c = by[:, test] / columns[:, 1].sum()
        every[np.ix_(train, test)] = c
        rest = c - c.mean(axis=0) - c.mean(axis=1, keepdims=True) + c.mean()
        wanted[train] += rest @ signs[:, test].T / np.sqrt(2)
        wanted[test] += rest.T @ signs[:, train].T / np.sqrt(2)
    np.testing.assert_allclose(told[:, 1:], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(told[:, 0], every.sum(axis=1), rtol=1e-3, atol=1e-5 * np.abs(told[:, 0]).max())

    i, fold = (
        0,
        (folds.assignment[0] + 1) % folds.n_folds,
    )  # that fold's images, judged with and without image 0
    kept = [j for j in range(24) if j != i and folds.assignment[j] != fold]
    test = np.flatnonzero(folds.assignment == fold)
    order = [*kept, *test]
    part = dataclasses.replace(samples, samples=tuple(samples[int(j)] for j in order))
    without = probe.evaluate(x[order], part, Folds(np.array([0] * len(kept) + [1] * len(test))))[len(kept) :]
    exact = (without[:, 0] - columns[test, 0]) / columns[:, 1].sum()
    assert np.corrcoef(exact, every[i, test])[0, 1] > 0.8


@pytest.mark.parametrize("cls", [Linear, Brier, PixelLinear, PixelBrier])
def test_the_units_of_channels_are_nothing_to_refits(cls: type[Probe]) -> None:
    samples, probe = data(n=24), cls()
    x, folds = features(samples, 0.5), make_folds(samples)
    units = np.logspace(-1, 1, x.shape[1], dtype=np.float32)[:, None, None]
    (_, plain), (_, scaled) = (probe.judge(made, samples, folds) for made in (x, x * units))
    assert plain is not None and scaled is not None
    np.testing.assert_allclose(scaled, plain, atol=2e-3 * np.abs(plain).max())


def test_the_score_of_a_squared_error_is_told_more_closely() -> None:
    """The same evidence with and without sketches: narrower intervals, the same numbers."""
    samples, probe = data(n=40), PixelBrier()
    folds = make_folds(samples)
    both = [probe.judge(features(samples, signal), samples, folds) for signal in (0.3, 0.5)]

    told, untold = score_of(probe, both), score_of(probe, [(c, j[:, 0]) for c, j in both if j is not None])
    assert told.value == untold.value
    assert 0.7 < (told.high - told.low) / (untold.high - untold.low) < 1  # by no more than 1 / sqrt(2)
