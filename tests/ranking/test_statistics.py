"""BCa against scipy, Holm against a hand computation, and what happens at the edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from gate.ranking.statistics import (
    Interval,
    group_ranks,
    holm,
    multiplicities,
    paired_bca,
    paired_bca_each,
    swap_p,
    tie_groups,
)


def pair(n: int, seed: int = 0, ratio: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Vanilla and technique shifts of n samples with a shared per-sample level, (n,) each."""
    rng = np.random.default_rng(seed)
    vanilla = rng.lognormal(0, 0.5, n)
    return vanilla, ratio * vanilla * rng.lognormal(0, 0.2, n)


def test_bca_equals_scipy_on_a_ratio_of_means():
    vanilla, technique = pair(48)
    expected = stats.bootstrap(
        (technique, vanilla),
        lambda t, v, axis: 1 - t.sum(axis) / v.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=1500,
        confidence_level=0.9,
        rng=np.random.default_rng(7),
    ).confidence_interval
    got = paired_bca(
        lambda i: 1 - technique[i].sum(-1) / vanilla[i].sum(-1), 48, resamples=1500, confidence=0.9, seed=7
    )
    assert got.value == pytest.approx(1 - technique.sum() / vanilla.sum(), rel=1e-12)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), rel=1e-10)
    assert got.n == 48


def test_multiplicities_are_the_sum_over_indices():
    idx = np.random.default_rng(0).integers(0, 9, (3, 5, 9))
    x = np.random.default_rng(1).normal(size=(9, 2))
    assert np.allclose(multiplicities(idx, 9) @ x, x[idx].sum(-2))
    assert multiplicities(idx[0, 0], 9).shape == (9,)


def test_each_gives_the_same_intervals_as_one_at_a_time_and_no_batch_changes_them():
    vanilla, technique = pair(30)

    def first(i: np.ndarray) -> np.ndarray:
        return technique[i].mean(-1)

    def second(i: np.ndarray) -> np.ndarray:
        return 1 - technique[i].sum(-1) / vanilla[i].sum(-1)

    alone = (paired_bca(first, 30, seed=3), paired_bca(second, 30, seed=3))
    for batch in (None, 7, 1):
        together = paired_bca_each(lambda i: np.stack([first(i), second(i)]), 30, seed=3, batch=batch)
        assert together == alone


def test_degenerate_statistics_get_an_explicit_interval_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_bca(lambda i: np.zeros(i.shape[:-1]), 10, seed=0) == Interval(0.0, 0.0, 0.0, 10)
        half = paired_bca(lambda i: 0.5 * np.ones(i.shape[:-1]), 10, seed=0)
        assert (half.low, half.value, half.high) == (0.5, 0.5, 0.5)
        dust = paired_bca(lambda i: 1e-14 * i.mean(-1), 10, seed=0)
        assert dust.low == dust.value == dust.high
        nan = paired_bca(lambda i: np.full(i.shape[:-1], np.nan), 10, seed=0)
        assert math.isnan(nan.value) and math.isnan(nan.low) and math.isnan(nan.high)
        one = paired_bca(lambda i: (i + 2.0).mean(-1), 1, seed=0)
        assert one.value == 2.0 and math.isnan(one.low) and math.isnan(one.high)
    assert not nan.excludes(0) and not one.excludes(0)
    assert half.excludes(0) and not half.excludes(0.5)


def test_swap_p_agrees_with_scipy_and_is_never_zero():
    vanilla, technique = pair(40, ratio=0.95)
    difference = vanilla - technique

    def mean_swapped(swapped: np.ndarray) -> np.ndarray:
        return np.where(swapped, -difference, difference).mean(-1)

    expected = stats.permutation_test(
        (vanilla, technique),
        lambda v, t, axis: (v - t).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert swap_p(mean_swapped, 40, permutations=20_000, seed=0) == pytest.approx(expected, abs=0.01)
    sure = swap_p(lambda s: np.where(s, -1.0, 1.0).mean(-1), 40, permutations=999, seed=0)
    assert sure == 1 / 1000
    assert swap_p(lambda s: np.where(s, -1.0, 1.0).mean(-1), 40, seed=0) == 1 / 2001
    assert swap_p(lambda s: np.zeros(s.shape[:-1]), 40, permutations=100, seed=0) == 1.0
    assert math.isnan(swap_p(lambda s: np.full(s.shape[:-1], np.nan), 40, permutations=100, seed=0))


def test_swap_p_is_uniform_under_the_null():
    rng = np.random.default_rng(5)
    ps = []
    for draw in range(400):
        d = rng.normal(size=20)
        ps.append(swap_p(lambda s, d=d: np.where(s, -d, d).mean(-1), 20, permutations=199, seed=draw))
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(ps) <= 0.6


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)
    with_nan = holm([0.01, np.nan, 0.04])
    assert with_nan[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(with_nan[1])


def test_tie_groups_are_led_by_the_best_left():
    # By score: 1 (0.9), 0 (0.8), 3 (0.5), 2 (0.4). 0 ties with 1; 3 differs from 1; 2 ties with both 1 and 3.
    differ = np.ones((4, 4), dtype=bool)
    for i, j in ((1, 0), (1, 2), (3, 2)):
        differ[i, j] = differ[j, i] = False
    groups = tie_groups([0.8, 0.9, 0.4, 0.5], differ)
    assert groups == [[1, 0, 2], [3]]
    assert group_ranks(groups) == [1, 4]
    assert tie_groups([1.0, 2.0], np.ones((2, 2), dtype=bool)) == [[1], [0]]
    assert tie_groups([np.nan, 2.0, np.nan], np.zeros((3, 3), dtype=bool)) == [[1], [0], [2]]
    assert tie_groups([], np.zeros((0, 0), dtype=bool)) == []
