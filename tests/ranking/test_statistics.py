"""Bootstrap-t against a plain loop, Holm against a hand computation, letters against their definition, the edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from gate.ranking.statistics import (
    Interval,
    Studentised,
    critical,
    holm,
    letters,
    paired_interval,
    places,
    resample_counts,
    studentise,
)


def pair(n: int, seed: int = 0, ratio: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Vanilla and technique shifts of n samples with a shared per-sample level, (n,) each."""
    rng = np.random.default_rng(seed)
    vanilla = rng.lognormal(0, 0.5, n)
    return vanilla, ratio * vanilla * rng.lognormal(0, 0.2, n)


def test_the_interval_and_p_are_those_of_a_plain_loop():
    n, r = 20, 400
    vanilla, technique = pair(n, ratio=0.93)
    value = 1 - technique.sum() / vanilla.sum()
    left_out = np.array([1 - np.delete(technique, i).sum() / np.delete(vanilla, i).sum() for i in range(n)])
    influence = (n - 1) * (left_out.mean() - left_out)
    error = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    t = []
    for counts in resample_counts(np.random.default_rng(7), n, r).astype(int):
        drawn = np.repeat(np.arange(n), counts)
        own = influence[drawn].std() / math.sqrt(n - 1)
        t.append(abs(1 - technique[drawn].sum() / vanilla[drawn].sum() - value) / own)
    q = sorted(t)[-round(0.1 * (r + 1))]  # p <= 0.1 needs 39 of 400 that are as extreme, or fewer
    got = paired_interval(
        lambda c: 1 - (c @ technique) / (c @ vanilla), n, resamples=r, confidence=0.9, seed=7
    )
    assert (got.low, got.value, got.high) == pytest.approx((value - q * error, value, value + q * error))
    assert got.n == n
    (p,) = studentise(lambda c: 1 - (c @ technique) / (c @ vanilla)[None], n, resamples=r, seed=7).p
    assert p == pytest.approx((1 + sum(x >= abs(value) / error for x in t)) / (r + 1))


def test_resamples_are_n_draws_and_go_on_where_the_last_ended():
    counts = resample_counts(np.random.default_rng(1), 9, 300)
    assert (counts.sum(axis=1) == 9).all() and counts.min() == 0
    rng = np.random.default_rng(1)
    assert np.array_equal(counts, np.concatenate([resample_counts(rng, 9, k) for k in (50, 7, 243)]))
    assert counts.mean(axis=0) == pytest.approx(np.ones(9), abs=0.2)


def test_each_gives_the_same_intervals_as_one_at_a_time_and_no_batch_changes_them():
    vanilla, technique = pair(30)

    def first(c: np.ndarray) -> np.ndarray:
        return c @ technique / c.sum(-1)

    def second(c: np.ndarray) -> np.ndarray:
        return 1 - (c @ technique) / (c @ vanilla)

    alone = [paired_interval(f, 30, seed=3) for f in (first, second)]
    for batch in (None, 7, 1):
        together = studentise(lambda c: np.stack([first(c), second(c)]), 30, seed=3, batch=batch).intervals()
        for got, expected in zip(together, alone, strict=True):
            assert (got.low, got.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_degenerate_statistics_get_an_explicit_interval_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_interval(lambda c: np.zeros(c.shape[:-1]), 10, seed=0) == Interval(0.0, 0.0, 0.0, 10)
        half = paired_interval(lambda c: 0.5 * np.ones(c.shape[:-1]), 10, seed=0)
        assert (half.low, half.value, half.high) == (0.5, 0.5, 0.5)
        dust = paired_interval(lambda c: 1e-14 * (c @ np.arange(10.0)), 10, seed=0)
        assert dust.low == dust.value == dust.high
        nan = paired_interval(lambda c: np.full(c.shape[:-1], np.nan), 10, seed=0)
        assert math.isnan(nan.value) and math.isnan(nan.low) and math.isnan(nan.high)
        one = paired_interval(lambda c: c @ np.array([2.0]), 1, seed=0)
        assert one.value == 2.0 and math.isnan(one.low) and math.isnan(one.high)
        # of three samples every ninth resample is one sample thrice: it has no error of its own
        three = paired_interval(lambda c: c @ np.array([1.0, 2, 4]) / 3, 3, seed=0)
        assert three.value == pytest.approx(7 / 3) and math.isnan(three.low) and math.isnan(three.high)
    assert not nan.excludes(0) and not one.excludes(0) and not three.excludes(0)
    assert half.excludes(0) and not half.excludes(0.5)


def test_p_without_variation_is_sure_and_without_a_number_is_nan():
    found = studentise(
        lambda c: np.stack([np.full(c.shape[:-1], v) for v in (0.5, 0.0, np.nan)]), 10, resamples=400, seed=0
    )
    assert found.p[:2] == pytest.approx([1 / 401, 1.0]) and math.isnan(found.p[2])
    assert found.differ().tolist() == [True, False, False]


def test_skewed_errors_are_covered_in_92_to_98_percent_of_400_draws():
    """BCa covers 82 % of these at n = 16. See docs/metrics.md for more of them: python -m tests.coverage."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        vanilla = rng.lognormal(0, 1.5, 16)
        technique = 0.8 * vanilla * rng.lognormal(-0.125, 0.5, 16)  # its mean factor is 0.8
        interval = paired_interval(
            lambda c, t=technique, v=vanilla: 1 - (c @ t) / (c @ v), 16, resamples=400, seed=0
        )
        covered += not interval.excludes(0.2)
    assert 0.92 <= covered / 400 <= 0.98


def test_of_six_equals_some_pair_is_told_apart_in_one_run_of_twenty():
    rng = np.random.default_rng(6)
    i, j = np.triu_indices(6, 1)
    split, runs = 0, 300
    for _ in range(runs):
        values = rng.lognormal(0, 0.3, (24, 1)) * rng.lognormal(0, 0.2, (24, 6))
        found = studentise(
            lambda c, x=values: ((c @ x)[..., i] - (c @ x)[..., j]).T / 24, 24, resamples=400, seed=0
        )
        split += found.differ().any()
    assert split / runs <= 0.08  # 5 %, and 2.4 standard errors; uncorrected it is 40 %


def test_the_step_down_tells_more_than_one_step_does():
    # two differences, |t| 5 and 3; of 99 resamples 10 have |t*| = 4 in the first: the second
    # passes only once it is gone
    resampled = np.ones((2, 99))
    resampled[0, :10] = 4.0
    found = Studentised(np.array([5.0, 3.0]), np.ones(2), resampled, 30)
    assert found.differ().tolist() == [True, True]
    assert Studentised(np.array([3.5, 3.0]), np.ones(2), resampled, 30).differ().tolist() == [False, False]
    assert critical(np.arange(1.0, 100)[None], 0.05)[0] == 95  # 5 of 99 + 1: four may be larger
    assert critical(np.ones((1, 9)), 0.05)[0] == math.inf


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]).shape == (0,)
    with_nan = holm([0.01, np.nan, 0.04])
    assert with_nan[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(with_nan[1])


def test_letters_by_hand():
    differ = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 2), (0, 3), (1, 3)):
        differ[i, j] = differ[j, i] = True
    assert letters(differ) == ["a", "ab", "bc", "c"]
    assert letters(np.zeros((3, 3), dtype=bool)) == ["a", "a", "a"]
    assert letters(~np.eye(3, dtype=bool)) == ["a", "b", "c"]
    assert letters(np.zeros((0, 0), dtype=bool)) == [] and letters(np.zeros((1, 1), dtype=bool)) == ["a"]
    many = letters(~np.eye(54, dtype=bool))
    assert many[25:27] == ["z", "A"] and many[51:] == ["Z", "a2", "b2"]


@pytest.mark.parametrize("seed", range(5))
def test_a_letter_is_shared_exactly_where_two_cannot_be_told_apart(seed):
    rng = np.random.default_rng(seed)
    differ = np.triu(rng.random((14, 14)) < 0.2 + 0.15 * seed, 1)
    differ |= differ.T
    found = letters(differ)
    each = [set(text) for text in found]
    for i in range(14):
        for j in range(14):
            assert i == j or bool(each[i] & each[j]) == (not differ[i, j])
    members = {a: {i for i in range(14) if a in each[i]} for a in set("".join(found))}
    assert not any(a != b and members[a] <= members[b] for a in members for b in members)  # none is idle


def test_places_count_those_above():
    assert places([1.0, 3.0, 3.0, 0.5, math.nan, math.nan]) == [3, 1, 1, 4, 5, 5]
    assert places([]) == []
