"""From raw numbers per sample to a ranking: GATE score, paired intervals, Holm's p, ties, winners, notes.

Everything is in one unit, the share of vanilla's error that is gone: 1 - error_T / error_vanilla, in
(-inf, 1]. Vanilla is exactly 0, 1 is an exact match, and a negative share is an error added. Shift metrics
and probes are the same thing here: per-sample columns that add up over samples, and an error that is a
function of their sum. So a bootstrap resample is one matrix product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gate.errors import IncomparableError, NonFiniteError, UsageError
from gate.notes import basis_notes, disagreements, scale_notes
from gate.statistics import (
    Array,
    Bools,
    Figure,
    Indices,
    Interval,
    confusion_error,
    confusion_margins,
    group_ranks,
    holm,
    multiplicities,
    paired_bca_each,
    share_removed,
    swap_p,
    symmetric_share,
    tie_groups,
)

Basis = Literal["shift and probes", "shift only", "probes only"]
Verdict = Literal["better", "worse", "none"]

_BATCH_ELEMENTS = 2**22  # 32 MiB of float64 per temporary


@dataclass(frozen=True)
class Evidence:
    """What was measured for one technique, or for vanilla; n samples, the same and in the same order for all.

    shifts: metric -> (n, cells) float64 >= 0, lower is closer to the input; a cell is a (timestep, layer),
    or a timestep for metrics without layers; averaged over noise seeds.
    counts: probe -> (n, cells, k, k), confusion counts of each sample (rows true, columns predicted; units
    are images or pixels), summed over noise seeds. What was not measured is absent.
    """

    shifts: Mapping[str, Array]
    counts: Mapping[str, Array] | None = None

    def get(self, kind: Literal["shift", "probe"], name: str) -> Array | None:
        """The array of one metric or probe; None when not measured."""
        return self.shifts.get(name) if kind == "shift" else (self.counts or {}).get(name)


@dataclass(frozen=True)
class Weights:
    """Weights of mean suppression and mean error removed in the GATE score; each in [0, 1], together 1."""

    suppression: float = 0.5
    probe: float = 0.5

    def __post_init__(self) -> None:
        if min(self.suppression, self.probe) < 0 or not math.isclose(self.suppression + self.probe, 1.0):
            raise UsageError(
                f"Score weights must not be negative and must add up to 1; got {self.suppression} for "
                f"suppression and {self.probe} for probes."
            )


@dataclass(frozen=True)
class Entry:
    """One technique's place. All intervals are shares of vanilla's error removed, higher is better.

    rank: 1 is best, shared by `tied_with`. p_holm: two-sided, against vanilla, adjusted over all techniques.
    verdict: "better" or "worse" than vanilla when p_holm is significant and the score's interval excludes 0.
    mean_suppression, mean_error_removed: the two terms of the score; None where the score does not use them.
    """

    name: str
    rank: int
    score: Interval
    p_holm: float
    verdict: Verdict
    tied_with: tuple[str, ...]
    mean_suppression: Interval | None
    mean_error_removed: Interval | None
    suppression: Mapping[str, Interval] = field(default_factory=dict)
    probes: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """Techniques, best first, and what the score was made of.

    score_metrics, score_probes: those that the score really used (measured, and with an error to remove).
    n: samples. confidence: of every interval; 1 - confidence is the level of p_holm. notes: plain sentences.
    """

    entries: tuple[Entry, ...]
    basis: Basis
    weights: Weights
    score_metrics: tuple[str, ...]
    score_probes: tuple[str, ...]
    n: int
    confidence: float
    notes: tuple[str, ...]


def rank(
    vanilla: Evidence,
    techniques: Mapping[str, Evidence],
    *,
    probe_figures: Mapping[str, Figure],
    weights: Weights = Weights(),
    score_metrics: Sequence[str],
    score_probes: Sequence[str] = (),
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    feature_scale: Mapping[str, float] | None = None,
    scale_sensitive: Collection[str] = (),
) -> Ranking:
    """Rank techniques by GATE score: weighted mean of suppression and of error removed, paired with vanilla.

    probe_figures: the figure whose complement is a probe's error. score_metrics, score_probes: what the score
    averages; those that vanilla lacks are left out (`Ranking` says which were used). Everything measured is
    reported.
    feature_scale: technique -> RMS feature norm over vanilla's; scale_sensitive: the shift metrics that follow
    it, to warn where they can be fooled.
    Raises IncomparableError where samples or cells differ, NonFiniteError where vanilla holds NaN or
    infinity; a technique with such numbers gets a NaN score and the last rank.
    """
    comparison = _Comparison(vanilla, techniques, probe_figures, weights, score_metrics, score_probes)
    intervals = paired_bca_each(
        comparison.quantities,
        comparison.n,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        batch=comparison.batch,
    )
    names = comparison.names
    permutations = max(resamples, 100 * len(names))  # the smallest p must survive Holm over all techniques
    p = [swap_p(comparison.swapped(i), comparison.n, permutations=permutations, seed=seed) for i in names]
    entries = _entries(comparison, intervals, holm(p), alpha=1 - confidence)
    kinds: tuple[Literal["shift", "probe"], ...] = ("shift", "probe")
    metrics, probes = (tuple(m.name for m in comparison.coefficients if m.kind == kind) for kind in kinds)
    basis: Basis = "shift only" if not probes else "shift and probes" if metrics else "probes only"
    uninformative = [m.name for m in comparison.uninformative]
    suspects = [name for name in scale_sensitive if name in vanilla.shifts]
    scale = {name: ratio for name, ratio in (feature_scale or {}).items() if name in techniques}
    notes = basis_notes(basis, uninformative, entries) + scale_notes(suspects, scale) + disagreements(entries)
    return Ranking(entries, basis, weights, metrics, probes, comparison.n, confidence, tuple(notes))


def winners(ranking: Ranking, top: int = 3, *, controls: Collection[str] = ()) -> tuple[str, ...]:
    """Names of at most `top` techniques that are better than vanilla and no controls, best first."""
    better = [e.name for e in ranking.entries if e.verdict == "better" and e.name not in controls]
    return tuple(better[:top])


@dataclass(frozen=True)
class _Measure:
    """A shift metric or a probe: columns that add up over samples, and the error of their sum."""

    kind: Literal["shift", "probe"]
    name: str
    figure: Figure | None = None
    classes: int = 0

    def columns(self, values: Array) -> Array:
        """Per-sample columns, (n, m), contiguous so that equal values give equal bits in a matrix product."""
        if self.kind == "shift":
            return np.ascontiguousarray(values, dtype=np.float64)
        return np.ascontiguousarray(confusion_margins(values).reshape(len(values), -1))

    def error(self, sums: Array) -> Array:
        """(..., m) sums of columns -> (..., cells) errors."""
        if self.figure is None:
            return sums
        return confusion_error(sums.reshape(*sums.shape[:-1], -1, 3, self.classes), self.figure)


class _Comparison:
    """The arrays of all techniques beside vanilla's, and every reported quantity as a function of resamples.

    coefficients: what each measure contributes to the score; they add up to 1.
    uninformative: measures on which vanilla makes no error at all; they cannot show an improvement.
    undefined: (technique, measure) that are uninformative and on which the technique does make errors.
    """

    def __init__(
        self,
        vanilla: Evidence,
        techniques: Mapping[str, Evidence],
        figures: Mapping[str, Figure],
        weights: Weights,
        score_metrics: Sequence[str],
        score_probes: Sequence[str],
    ) -> None:
        self.names = sorted(techniques)  # the order in which a mapping was filled must not matter
        self.measures = _measures(vanilla, figures)
        self.vanilla: dict[_Measure, Array] = {}
        for measure in self.measures:
            self.vanilla[measure] = measure.columns(_require(vanilla, measure, "vanilla"))
        sizes = {len(columns) for columns in self.vanilla.values()}
        if len(sizes) != 1:
            raise IncomparableError(
                f"Vanilla's numbers must cover the same samples throughout; got {sorted(sizes)} samples."
            )
        self.n = sizes.pop()
        if self.n == 0:
            raise IncomparableError("Nothing to rank by: there are no samples.")
        self.batch = max(1, _BATCH_ELEMENTS // max(self.n, *(c.shape[1] for c in self.vanilla.values())))
        self.uninformative = tuple(m for m in self.measures if not _has_error(m, self.vanilla[m]))
        self.coefficients = self._coefficients(weights, score_metrics, score_probes)
        self.techniques = {name: self._columns(name, vanilla, techniques[name]) for name in self.names}
        self.undefined = {
            (name, m)
            for name, columns in self.techniques.items()
            for m in self.uninformative
            if m in columns and _has_error(m, columns[m])
        }

    def _coefficients(
        self, weights: Weights, score_metrics: Sequence[str], score_probes: Sequence[str]
    ) -> dict[_Measure, float]:
        usable = [m for m in self.measures if m not in self.uninformative]
        shifts = [m for m in usable if m.kind == "shift" and m.name in score_metrics]
        probes = [m for m in usable if m.kind == "probe" and m.name in score_probes]
        parts = [(w, p) for w, p in ((weights.suppression, shifts), (weights.probe, probes)) if p]
        if not parts:
            raise IncomparableError(
                "Nothing to rank by: vanilla was measured on none of "
                f"{', '.join([*score_metrics, *score_probes]) or 'the metrics'}, or has no error on any."
            )
        parts = [(w, p) for w, p in parts if w > 0] or [(1.0, p) for _, p in parts]
        total = sum(w for w, _ in parts)
        return {measure: w / total / len(part) for w, part in parts for measure in part}

    def _columns(self, name: str, vanilla: Evidence, evidence: Evidence) -> dict[_Measure, Array]:
        columns = {}
        for measure in self.measures:
            needed = measure in self.coefficients
            values = _require(evidence, measure, name) if needed else evidence.get(measure.kind, measure.name)
            if values is None:
                continue
            expected = _require(vanilla, measure, "vanilla").shape
            if values.shape != expected:
                raise IncomparableError(
                    f"{measure.name!r} of {name!r} has shape {values.shape}, vanilla's {expected}: measure "
                    "both on the same samples, timesteps and layers."
                )
            columns[measure] = measure.columns(values)
        return columns

    @property
    def block(self) -> int:
        """Quantities per technique: score, mean suppression, mean error removed, then one per measure."""
        return 3 + len(self.measures)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of techniques whose score difference is a quantity, after all blocks."""
        return list(itertools.combinations(range(len(self.names)), 2))

    def quantities(self, idx: Indices) -> Array:
        """Every reported quantity of each resample. idx: (..., r) -> (techniques * block + pairs, ...)."""
        counts = multiplicities(idx, self.n)
        errors = {m: m.error(counts @ columns) for m, columns in self.vanilla.items()}
        out = np.full((len(self.names) * self.block + len(self.pairs), *idx.shape[:-1]), np.nan)
        for i, name in enumerate(self.names):
            shares = {
                m: share_removed(m.error(counts @ c), errors[m]) for m, c in self.techniques[name].items()
            }
            rows = out[i * self.block : (i + 1) * self.block]
            rows[0] = self._score(shares)
            for row, kind in ((1, "shift"), (2, "probe")):
                part = [shares[m] for m in self.coefficients if m.kind == kind]
                if part:
                    rows[row] = np.mean(part, axis=0)
            for row, measure in enumerate(self.measures, start=3):
                if measure in shares and (name, measure) not in self.undefined:
                    rows[row] = shares[measure]
        scores = out[: len(self.names) * self.block : self.block]
        for row, (i, j) in enumerate(self.pairs, start=len(self.names) * self.block):
            out[row] = scores[i] - scores[j]
        return out

    def swapped(self, name: str) -> Callable[[Bools], Array]:
        """The score on symmetric shares, after technique and vanilla traded places on the swapped samples."""
        sides = {
            m: (columns.sum(axis=0), self.vanilla[m].sum(axis=0), self.vanilla[m] - columns)
            for m, columns in self.techniques[name].items()
            if m in self.coefficients
        }

        def statistic(swapped: Bools) -> Array:
            moves = swapped.astype(np.float64)
            shares = {}
            for measure, (technique, vanilla, difference) in sides.items():
                moved = moves @ difference
                shares[measure] = symmetric_share(
                    measure.error(technique + moved), measure.error(vanilla - moved)
                )
            return self._score(shares)

        return statistic

    def _score(self, shares: Mapping[_Measure, Array]) -> Array:
        terms = [coefficient * shares[m] for m, coefficient in self.coefficients.items()]
        return np.asarray(np.sum(terms, axis=0), dtype=np.float64)


def _measures(vanilla: Evidence, figures: Mapping[str, Figure]) -> list[_Measure]:
    measures = []
    for name, values in vanilla.shifts.items():
        if values.ndim != 2:
            raise IncomparableError(f"Shifts of {name!r} must be (samples, cells); got shape {values.shape}.")
        measures.append(_Measure("shift", name))
    for name, values in (vanilla.counts or {}).items():
        if values.ndim != 4 or values.shape[2] != values.shape[3]:
            raise IncomparableError(
                f"Confusion counts of {name!r} must be (samples, cells, k, k); got {values.shape}."
            )
        if figures.get(name) not in ("miou", "balanced-accuracy"):
            raise UsageError(
                f"Probe {name!r} must state its figure, 'miou' or 'balanced-accuracy'; "
                f"got {figures.get(name)!r}."
            )
        measures.append(_Measure("probe", name, figures[name], values.shape[-1]))
    for measure in measures:
        if not np.isfinite(_require(vanilla, measure, "vanilla")).all():
            raise NonFiniteError(
                f"Vanilla's {measure.name!r} holds NaN or infinity; there is nothing to compare to."
            )
    if not measures:
        raise IncomparableError("Nothing to rank by: vanilla has neither shifts nor confusion counts.")
    return measures


def _require(evidence: Evidence, measure: _Measure, owner: str) -> Array:
    values = evidence.get(measure.kind, measure.name)
    if values is None:
        raise IncomparableError(
            f"{owner!r} was not measured by {measure.name!r}, which the score uses; measure it or leave "
            "it out."
        )
    return values


def _has_error(measure: _Measure, columns: Array) -> bool:
    error = measure.error(columns.sum(axis=0))
    return bool((error > 0).any() or np.isnan(error).any())


def _entries(
    comparison: _Comparison, intervals: Sequence[Interval], p: Array, *, alpha: float
) -> tuple[Entry, ...]:
    names, block = comparison.names, comparison.block
    blocks = [intervals[i * block : (i + 1) * block] for i in range(len(names))]
    differ = np.zeros((len(names), len(names)), dtype=np.bool_)
    for (i, j), difference in zip(comparison.pairs, intervals[len(names) * block :], strict=True):
        differ[i, j] = differ[j, i] = difference.excludes(0.0)
    groups = tie_groups([rows[0].value for rows in blocks], differ)
    entries = []
    for group, place in zip(groups, group_ranks(groups), strict=True):
        for i in group:
            score, shift, probe, *each = blocks[i]
            measured = comparison.techniques[names[i]]
            kinds = {m.kind for m in comparison.coefficients}
            values = [(m, v) for m, v in zip(comparison.measures, each, strict=True) if m in measured]
            entries.append(
                Entry(
                    name=names[i],
                    rank=place,
                    score=score,
                    p_holm=float(p[i]),
                    verdict=_verdict(score, float(p[i]), alpha),
                    tied_with=tuple(names[j] for j in group if j != i),
                    mean_suppression=shift if "shift" in kinds else None,
                    mean_error_removed=probe if "probe" in kinds else None,
                    suppression={m.name: v for m, v in values if m.kind == "shift"},
                    probes={m.name: v for m, v in values if m.kind == "probe"},
                )
            )
    return tuple(entries)


def _verdict(score: Interval, p_holm: float, alpha: float) -> Verdict:
    if not (p_holm <= alpha and score.excludes(0.0)):
        return "none"
    return "better" if score.value > 0 else "worse"
