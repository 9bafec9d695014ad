"""Every technique beside vanilla: all reported quantities as functions of resampled samples.

Shift metrics and probes are the same thing here: per-sample columns, and the error of any sample of them
(`gate.measure.Measure`). For most it is a function of the columns' sum, so a bootstrap resample is one matrix product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gate.errors import IncomparableError, NonFiniteError, UsageError
from gate.measure import Measure, share_removed
from gate.ranking.entry import Evidence, Weights
from gate.ranking.statistics import (
    Bools,
    Floats,
    Indices,
    multiplicities,
    symmetric_share,
)

_BATCH_ELEMENTS = 2**22  # 32 MiB of float64 per temporary


PLAIN = Measure()  # lower is better, 0 is perfect, the mean of one column


@dataclass(frozen=True)
class Quantity:
    """A shift metric or a probe that was measured, under the name of its array ("cosine@own"), and how it is read."""

    kind: Literal["shift", "probe"]
    name: str
    measure: Measure


class Comparison:
    """The arrays of all techniques beside vanilla's, and every reported quantity as a function of resamples.

    coefficients: what each measure contributes to the score; they add up to 1.
    uninformative: measures on which vanilla makes no error at all; they cannot show an improvement.
    undefined: (technique, measure) that are uninformative and on which the technique does make errors.
    """

    def __init__(
        self,
        vanilla: Evidence,
        techniques: Mapping[str, Evidence],
        measures: Mapping[str, Measure],
        weights: Weights,
        score_metrics: Sequence[str],
        score_probes: Sequence[str],
    ) -> None:
        self.names = sorted(techniques)  # the order in which a mapping was filled must not matter
        self.measures = _measures(vanilla, measures)
        self.vanilla: dict[Quantity, Floats] = {}
        for measure in self.measures:
            self.vanilla[measure] = measure.measure.columns(_require(vanilla, measure, "vanilla"))
        sizes = {len(columns) for columns in self.vanilla.values()}
        if len(sizes) != 1:
            raise IncomparableError(
                f"Vanilla's numbers must cover the same samples throughout; got {sorted(sizes)} samples."
            )
        self.n = sizes.pop()
        if self.n == 0:
            raise IncomparableError("Nothing to rank by: there are no samples.")
        self.batch = max(1, _BATCH_ELEMENTS // max(self.n, *(c[0].size for c in self.vanilla.values())))
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
    ) -> dict[Quantity, float]:
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

    def _columns(self, name: str, vanilla: Evidence, evidence: Evidence) -> dict[Quantity, Floats]:
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
            columns[measure] = measure.measure.columns(values)
        return columns

    @property
    def block(self) -> int:
        """Quantities per technique: score, mean suppression, mean error removed, then one per measure."""
        return 3 + len(self.measures)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of techniques whose score difference is a quantity, after all blocks."""
        return list(itertools.combinations(range(len(self.names)), 2))

    def quantities(self, idx: Indices) -> Floats:
        """Every reported quantity of each resample. idx: (..., r) -> (techniques * block + pairs, ...)."""
        counts = multiplicities(idx, self.n)
        errors = {m: m.measure.errors(columns, counts) for m, columns in self.vanilla.items()}
        out = np.full((len(self.names) * self.block + len(self.pairs), *idx.shape[:-1]), np.nan)
        for i, name in enumerate(self.names):
            shares = {
                m: share_removed(m.measure.errors(c, counts), errors[m])
                for m, c in self.techniques[name].items()
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

    def swapped(self, name: str) -> Callable[[Bools], Floats]:
        """The score on symmetric shares, after technique and vanilla traded places on the swapped samples."""
        columns = self.techniques[name]
        sides = {m: _Sides(m.measure, columns[m], self.vanilla[m]) for m in self.coefficients}

        def statistic(swapped: Bools) -> Floats:
            moves = swapped.astype(np.float64)
            return self._score({m: symmetric_share(*both.errors(moves)) for m, both in sides.items()})

        return statistic

    def _score(self, shares: Mapping[Quantity, Floats]) -> Floats:
        terms = [coefficient * shares[m] for m, coefficient in self.coefficients.items()]
        return np.asarray(np.sum(terms, axis=0), dtype=np.float64)


class _Sides:
    """A technique and vanilla, (n, cells, m) each, that trade places on some samples."""

    def __init__(self, measure: Measure, technique: Floats, vanilla: Floats) -> None:
        self.measure, self.shape = measure, vanilla.shape
        if measure.is_additive:
            sides = technique.reshape(len(technique), -1), vanilla.reshape(len(vanilla), -1)
            self.sums = [side.sum(axis=0) for side in sides]
            self.difference = sides[1] - sides[0]
        else:
            self.both = np.concatenate([technique, vanilla])

    def errors(self, moves: Floats) -> tuple[Floats, Floats]:
        """The technique's and vanilla's, (..., cells) each. moves: (..., n), 1 where a sample is swapped."""
        if not self.measure.is_additive:
            rows = [[1 - moves, moves], [moves, 1 - moves]]  # how often each row of both counts on this side
            one, other = (self.measure.errors(self.both, np.concatenate(side, axis=-1)) for side in rows)
            return one, other
        n, cells, _ = self.shape
        moved = moves @ self.difference  # equal sides stay equal to the last bit
        one, other = (
            self.measure.error_of_sums(sums.reshape(*moves.shape[:-1], cells, -1), np.array(n))
            for sums in (self.sums[0] + moved, self.sums[1] - moved)
        )
        return one, other


def _measures(vanilla: Evidence, known: Mapping[str, Measure]) -> list[Quantity]:
    measures = []
    for name, values in vanilla.shifts.items():
        if values.ndim not in (2, 3):
            raise IncomparableError(
                f"Shifts of {name!r} must be (samples, cells) or (samples, cells, columns); got shape {values.shape}."
            )
        measures.append(Quantity("shift", name, known.get(name.partition("@")[0], PLAIN)))
    for name in vanilla.counts or {}:
        if name not in known:
            raise UsageError(f"Probe {name!r} was measured, but nothing says how its numbers are read.")
        measures.append(Quantity("probe", name, known[name]))
    for measure in measures:
        if not np.isfinite(_require(vanilla, measure, "vanilla")).all():
            raise NonFiniteError(
                f"Vanilla's {measure.name!r} holds NaN or infinity; there is nothing to compare to."
            )
    if not measures:
        raise IncomparableError("Nothing to rank by: vanilla has neither shifts nor counts.")
    return measures


def _require(evidence: Evidence, measure: Quantity, owner: str) -> Floats:
    values = evidence.get(measure.kind, measure.name)
    if values is None:
        raise IncomparableError(
            f"{owner!r} was not measured by {measure.name!r}, which the score uses; measure it or leave "
            "it out."
        )
    return values


def _has_error(measure: Quantity, columns: Floats) -> bool:
    error = measure.measure.errors(columns, np.ones(len(columns)))
    return bool((error > 0).any() or np.isnan(error).any())
