"""Paired statistics over samples: studentised intervals and their p, Holm, ties, letters, opposed orders.

Every function takes a statistic of *how often each sample counts*, never the data itself: one set of counts serves
the technique and vanilla, so each comparison is paired by construction, and one seed gives every technique the same
resamples. One distribution, of |t*|, answers everything: its quantile is the interval, its tail is p, and its maximum
over pairs says which techniques differ. So an interval, a star and a tie cannot contradict each other.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]

_BATCH_ELEMENTS = 2**22  # 32 MiB of float64 per batch of resamples
_CONSTANT = 1e-12  # a bootstrap distribution narrower than this, relative to its value, is one point


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval, in the figure's own unit.

    n: samples that it was computed from. low and high are NaN where no interval exists (n < 2, a NaN, or resamples of
    which too many do not vary), and equal to value where the statistic does not vary at all.
    """

    value: float
    low: float
    high: float
    n: int

    def excludes(self, point: float) -> bool:
        """Whether `point` lies outside [low, high]. False where there is no interval."""
        return point < self.low or point > self.high


@dataclass(frozen=True, eq=False)
class Studentised:
    """m statistics and their studentised resamples.

    value, error: (m,), the figure and its jackknife standard error. resampled: (m, r), |t*| of each resample, infinite
    where a resample does not vary. n: samples.
    """

    value: Floats
    error: Floats
    resampled: Floats
    n: int

    @property
    def t(self) -> Floats:
        """(m,), |value| in standard errors; 0 where neither is there, NaN without a number."""
        with np.errstate(all="ignore"):
            t = np.abs(self.value) / self.error
        return np.where((self.value == 0) & (self.error == 0), 0.0, t)

    @property
    def p(self) -> Floats:
        """(m,), two-sided p of the value 0: (1 + #{|t*| >= |t|}) / (r + 1), at most alpha just where the interval of
        confidence 1 - alpha excludes 0. NaN without a number."""
        t = self.t[:, None] * (1 - 1e-9)  # a resample equal to the data must count, whatever the rounding
        p = (1 + np.count_nonzero(self.resampled >= t, axis=1)) / (self.resampled.shape[1] + 1)
        return np.where(np.isnan(self.t), np.nan, p)

    def part(self, rows: slice) -> Studentised:
        """Some of the statistics."""
        return Studentised(self.value[rows], self.error[rows], self.resampled[rows], self.n)

    def intervals(self, confidence: float = 0.95) -> tuple[Interval, ...]:
        """value +- q error, q the quantile of |t*|; m of them, in order."""
        with np.errstate(all="ignore"):
            half = critical(self.resampled, 1 - confidence) * self.error
        half = np.where(np.isfinite(half), half, np.where(self.error == 0, 0.0, np.nan))
        bounds = zip(self.value, self.value - half, self.value + half, strict=True)
        return tuple(Interval(float(v), float(low), float(high), self.n) for v, low, high in bounds)

    def differ(self, alpha: float = 0.05) -> Bools:
        """(m,), which of these differences are not 0: the chance that any of them is one too many is at most alpha.

        The step-down maximum of Romano & Wolf (2005): the largest |t| is held against the largest |t*| of all, and,
        where some are told apart, the others again against the largest of those left.
        """
        t, left = self.t, ~np.isnan(self.t)
        told = np.zeros(len(t), dtype=np.bool_)
        while left.any():
            more = left & (t > critical(self.resampled[left].max(axis=0, keepdims=True), alpha)[0])
            if not more.any():
                break
            told, left = told | more, left & ~more
        return told


def critical(resampled: Floats, alpha: float) -> Floats:
    """The |t| beyond which p <= alpha. resampled: (m, r). Returns (m,); infinite where r is too small for alpha."""
    r = resampled.shape[1]
    allowed = math.floor(alpha * (r + 1) * (1 + 1e-9)) - 1  # resamples that may be as extreme
    if not 0 <= allowed < r:
        return np.full(len(resampled), np.inf)
    return np.asarray(np.partition(resampled, r - 1 - allowed, axis=1)[:, r - 1 - allowed])


def resample_counts(rng: np.random.Generator, n: int, resamples: int) -> Floats:
    """How often each of n samples occurs in each resample, (resamples, n); the next call goes on where this ended."""
    drawn = (rng.random((resamples, n)) * n).astype(np.int64)
    drawn += np.arange(resamples)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def studentise(
    statistic: Statistic,
    n: int,
    *,
    resamples: int = 2000,
    seed: int,
    batch: int | None = None,
    interactions: Floats | None = None,
) -> Studentised:
    """Symmetric bootstrap-t (Hall 1988, Annals of Statistics 16:927) of m statistics on the same resamples.

    statistic: maps counts (..., n), how often each sample occurs, to values (m, ...). batch: resamples per call of
    `statistic`; bounds memory and changes no result. seed: the same seed and n give the same resamples. interactions:
    (m,), the part of each variance that hangs on pairs of samples; a jackknife counts it twice (Efron & Stein 1981,
    Annals of Statistics 9:586), so it is taken off once, and never more than half.

    A sample's influence is what leaving it out changes, n - 1 times (jackknife); the standard error of the data and of
    each resample is that of the influences' mean (Efron & Tibshirani 1993, ch. 12). Percentiles of the statistic
    itself, BCa's too, are narrow in small and skewed samples; docs/metrics.md says what covers how often.
    It asks that the samples be independent draws: copies of one image make every interval too narrow.
    """
    with np.errstate(all="ignore"):
        value = np.asarray(statistic(np.ones(n)), dtype=np.float64)
        if n < 2:
            nothing = np.full(len(value), np.nan)
            return Studentised(value, nothing, np.full((len(value), resamples), np.inf), n)
        size = batch or max(1, _BATCH_ELEMENTS // n)
        left_out = [
            statistic(1.0 - (np.arange(i, min(i + size, n))[:, None] == np.arange(n)))
            for i in range(0, n, size)
        ]
        influence = (n - 1) * (value[:, None] - np.concatenate(left_out, axis=-1))
        influence -= influence.mean(axis=1, keepdims=True)
        error = np.sqrt((influence**2).mean(axis=1) / (n - 1))
        rng = np.random.default_rng(seed)
        resampled = np.empty((len(value), resamples))
        spread = np.zeros(len(value))
        for start in range(0, resamples, size):
            part = slice(start, min(start + size, resamples))
            counts = resample_counts(rng, n, part.stop - start)
            move = np.asarray(statistic(counts)) - value[:, None]
            mean, square = (influence**k @ counts.T / n for k in (1, 2))
            own = np.sqrt(np.maximum(square - mean**2, 0) / (n - 1))
            own[own <= 1e-6 * error[:, None]] = 0  # rounding: all samples of this resample have one influence
            resampled[:, part] = np.abs(move) / own
            spread = np.maximum(spread, np.abs(move).max(axis=1))
    resampled[np.isnan(resampled)] = np.inf
    constant = spread <= _CONSTANT * np.maximum(1.0, np.abs(value))
    resampled[constant], error[constant] = 0.0, 0.0
    if interactions is not None:
        error = np.sqrt(np.maximum(error**2 - interactions, error**2 / 2))
    error[~np.isfinite(value)] = np.nan
    return Studentised(value, error, resampled, n)


def paired_interval(
    statistic: Statistic, n: int, *, resamples: int = 2000, confidence: float = 0.95, seed: int
) -> Interval:
    """The interval of one statistic, a function of counts (..., n) -> (...); see `studentise`."""

    def one(counts: Floats) -> Floats:
        return np.asarray(statistic(counts), dtype=np.float64)[None]

    return studentise(one, n, resamples=resamples, seed=seed).intervals(confidence)[0]


def holm(p: Sequence[float] | Floats) -> Floats:
    """Holm's step-down adjustment (Holm 1979): controls the family-wise error over all p.

    It holds whatever the dependence between the tests, as long as each p is one: under its own null hypothesis at most
    alpha with a chance of at most alpha. p: (m,) in [0, 1]; a NaN stays NaN and is not counted as a test.
    Returns (m,) in [0, 1], in p's order.
    """
    raw = np.asarray(p, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(raw))
    order = tested[np.argsort(raw[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * factors))
    return adjusted


def letters(differ: Bools) -> list[str]:
    """Compact letters: two share one exactly where they cannot be told apart (insert and absorb, Piepho 2004).

    differ: (k, k), symmetric. Returns k strings, "a" with the first; one that is told from all has a letter of its own.
    """
    groups = [frozenset(range(len(differ)))] if len(differ) else []
    for i, j in zip(*np.nonzero(np.triu(differ, 1)), strict=True):
        split = [g for g in groups if i in g and j in g]
        groups = [g for g in groups if g not in split]
        halves = sorted({g - {m} for g in split for m in (int(i), int(j))}, key=len, reverse=True)
        for half in halves:
            if not any(half <= g for g in groups):
                groups.append(half)
    groups.sort(key=sorted)
    return ["".join(_letter(g) for g, group in enumerate(groups) if i in group) for i in range(len(differ))]


def _letter(i: int) -> str:
    """a ... z, A ... Z, then a2 and so on."""
    turn, at = divmod(i, len(string.ascii_letters))
    return string.ascii_letters[at] + (str(turn + 1) if turn else "")


def places(shown: Sequence[float]) -> list[int]:
    """The position of each number among all, 1 the highest; equal numbers share theirs, NaN comes last."""
    values = [-math.inf if math.isnan(v) else v for v in shown]
    return [1 + sum(other > value for other in values) for value in values]


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b; NaN under 4 techniques, where one swap decides it, or where one order is constant."""
    if len(a) < 4 or len(set(a)) < 2 or len(set(b)) < 2:
        return float("nan")
    return float(stats.kendalltau(a, b).statistic)


def opposed(
    a: Mapping[str, Interval], b: Mapping[str, Interval], names: Sequence[str]
) -> tuple[float, str, str]:
    """The two names that a and b order oppositely, by intervals that do not overlap, with the widest gap.

    Returns (gap, the one that a puts above, the other); the gap is the smaller of the two between intervals,
    in their unit, and 0 where no two names are opposed.
    """
    widest = (0.0, "", "")
    for first, second in itertools.permutations(names, 2):
        up, down = a[first].low - a[second].high, b[second].low - b[first].high
        if up > widest[0] and down > widest[0]:  # also false for NaN
            widest = (min(up, down), first, second)
    return widest
