"""Every technique beside vanilla: all reported quantities as functions of resampled samples.

Shift metrics and probes are the same thing here: per-sample columns, and the error of any sample of them
(`gate.measure.Measure`). For most it is a function of the columns' sum, so a bootstrap resample is one matrix product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gate.errors import IncomparableError, NonFiniteError, UsageError
from gate.measure import Measure, share_removed, share_slopes
from gate.ranking.entry import Evidence, Rule, Weights
from gate.ranking.statistics import Floats

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

    shown: the measures of suppression and of probe gain. coefficients: what each measure contributes to the score,
    those of a rule, or, by weights, of what is shown.
    uninformative: measures on which vanilla makes no error at all; they cannot show an improvement.
    undefined: (technique, measure) that are uninformative and on which the technique does make errors.
    """

    def __init__(
        self,
        vanilla: Evidence,
        techniques: Mapping[str, Evidence],
        measures: Mapping[str, Measure],
        weights: Weights | Rule,
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
        usable = [m for m in self.measures if m not in self.uninformative]
        self.shown = {
            "shift": [m for m in usable if m.kind == "shift" and m.name in score_metrics],
            "probe": [m for m in usable if m.kind == "probe" and m.name in score_probes],
        }
        if isinstance(weights, Rule):
            self.coefficients = self._ruled(weights, usable)
        else:
            self.coefficients = self._weighted(weights, [*score_metrics, *score_probes])
        self.techniques = {name: self._columns(name, vanilla, techniques[name]) for name in self.names}
        told = {
            (name, m): np.asarray(evidence.refits[m.name], dtype=np.float64)
            for name, evidence in ((None, vanilla), *techniques.items())
            for m in self.measures
            if m.kind == "probe" and evidence.refits and m.name in evidence.refits
        }
        self.refits = {key: refit if refit.ndim == 2 else refit[..., 0] for key, refit in told.items()}
        self.sketches = {key: refit[..., 1:] for key, refit in told.items() if refit.ndim == 3}
        self.undefined = {
            (name, m)
            for name, columns in self.techniques.items()
            for m in self.uninformative
            if m in columns and _has_error(m, columns[m])
        }

    @staticmethod
    def _ruled(rule: Rule, usable: Sequence[Quantity]) -> dict[Quantity, float]:
        found = {m: rule.coefficients[m.name] for m in usable if m.name in rule.coefficients}
        lacking = sorted(set(rule.coefficients) - {m.name for m in found})
        if lacking:
            raise IncomparableError(
                f"Nothing to predict by: the rule needs {', '.join(lacking)}, and vanilla was not measured on it, or "
                "has no error there."
            )
        return found

    def _weighted(self, weights: Weights, names: Sequence[str]) -> dict[Quantity, float]:
        pairs = ((weights.suppression, self.shown["shift"]), (weights.probe, self.shown["probe"]))
        parts = [(w, p) for w, p in pairs if p]
        if not parts:
            raise IncomparableError(
                "Nothing to rank by: vanilla was measured on none of "
                f"{', '.join(names) or 'the metrics'}, or has no error on any."
            )
        parts = [(w, p) for w, p in parts if w > 0] or [(1.0, p) for _, p in parts]
        self.shown = {kind: p if any(p is q for _, q in parts) else [] for kind, p in self.shown.items()}
        total = sum(w for w, _ in parts)
        return {measure: w / total / len(part) for w, part in parts for measure in part}

    def _columns(self, name: str, vanilla: Evidence, evidence: Evidence) -> dict[Quantity, Floats]:
        columns = {}
        for measure in self.measures:
            needed = measure in self.coefficients or measure in self.shown[measure.kind]
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

    def quantities(self, counts: Floats) -> Floats:
        """Every reported quantity of each resample. counts: (..., n), how often each sample occurs.

        Returns (techniques * block + pairs, ...).
        """
        errors = {m: self._errors(None, m, self.vanilla[m], counts) for m in self.measures}
        out = np.full((len(self.names) * self.block + len(self.pairs), *counts.shape[:-1]), np.nan)
        for i, name in enumerate(self.names):
            shares = {
                m: share_removed(self._errors(name, m, columns, counts), errors[m])
                for m, columns in self.techniques[name].items()
            }
            rows = out[i * self.block : (i + 1) * self.block]
            rows[0] = self._score(shares)
            for row, part in enumerate(self.shown.values(), start=1):
                if part:
                    rows[row] = np.mean([shares[m] for m in part], axis=0)
            for row, measure in enumerate(self.measures, start=3):
                if measure in shares and (name, measure) not in self.undefined:
                    rows[row] = shares[measure]
        scores = out[: len(self.names) * self.block : self.block]
        for row, (i, j) in enumerate(self.pairs, start=len(self.names) * self.block):
            out[row] = scores[i] - scores[j]
        return out

    def _errors(self, name: str | None, measure: Quantity, columns: Floats, counts: Floats) -> Floats:
        """Errors of each resample, (..., cells). None is vanilla's name.

        A probe is not trained again on each resample: that a training sample counts otherwise than once moves its error
        in proportion (the infinitesimal jackknife; Giordano et al. 2019 approximate refits so).
        """
        errors = measure.measure.errors(columns, counts)
        refit = self.refits.get((name, measure))
        return errors if refit is None else np.maximum(errors + (1 - counts) @ refit, 0)

    def interactions(self) -> Floats:
        """The part of each quantity's variance that hangs on pairs of images, one trained on and one judged, (m,).

        A jackknife counts it twice, once with either image (Efron & Stein 1981). Told where a probe gives sketches
        (`gate.probe.random_signs`), else 0. Quantities in the order of `quantities`.
        """
        out = np.zeros(len(self.names) * self.block + len(self.pairs))
        scores = []
        for i, name in enumerate(self.names):
            told = ((m, self._sketch(name, m)) for m in self.techniques[name])
            known = {m: sketch for m, sketch in told if sketch is not None}
            rows = out[i * self.block : (i + 1) * self.block]
            scores.append(sum(c * known[m] for m, c in self.coefficients.items() if m in known))
            rows[0] = _variance(scores[-1])
            for row, part in enumerate(self.shown.values(), start=1):
                rows[row] = _variance(sum(known[m] / len(part) for m in part if m in known))
            for row, measure in enumerate(self.measures, start=3):
                rows[row] = _variance(known.get(measure, 0))
        for row, (i, j) in enumerate(self.pairs, start=len(self.names) * self.block):
            out[row] = _variance(scores[i] - scores[j])
        return out

    def _sketch(self, name: str, measure: Quantity) -> Floats | None:
        """Of the share that is gone, (n, r); None where it, or vanilla's, is not told."""
        ours, theirs = self.sketches.get((name, measure)), self.sketches.get((None, measure))
        if ours is None or theirs is None:
            return None
        once = np.ones(self.n)
        error, vanilla = (
            measure.measure.errors(c, once) for c in (self.techniques[name][measure], self.vanilla[measure])
        )
        by_error, by_vanilla = share_slopes(error, vanilla)
        return np.einsum("c,ncr->nr", by_error, ours) + np.einsum("c,ncr->nr", by_vanilla, theirs)

    def _score(self, shares: Mapping[Quantity, Floats]) -> Floats:
        terms = [coefficient * shares[m] for m, coefficient in self.coefficients.items()]
        return np.asarray(np.sum(terms, axis=0), dtype=np.float64)


def _variance(sketch: Floats | float) -> float:
    """What a jackknife makes of it: (n - 1) / n times the sum of squares over images, mean over r signs; (n, r)."""
    if not isinstance(sketch, np.ndarray):
        return 0.0
    variance = (len(sketch) - 1) / len(sketch) * float(np.square(sketch).mean(axis=1).sum())
    return variance if math.isfinite(variance) else 0.0


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
