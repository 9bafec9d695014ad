"""From raw numbers per sample to a ranking: GATE score, paired intervals, Holm's p, ties, winners, notes.

Everything is in one unit, the share of vanilla's error that is gone: 1 - error_T / error_vanilla, in
(-inf, 1]. Vanilla is exactly 0, 1 is an exact match, and a negative share is an error added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from gate.measure import Measure
from gate.ranking.comparison import Comparison
from gate.ranking.entry import Basis, Entry, Evidence, Ranking, Verdict, Weights
from gate.ranking.notes import basis_notes, disagreements, scale_notes
from gate.ranking.statistics import Floats, Interval, group_ranks, holm, paired_bca_each, swap_p, tie_groups

EVEN = Weights()


def rank(
    vanilla: Evidence,
    techniques: Mapping[str, Evidence],
    *,
    measures: Mapping[str, Measure],
    weights: Weights = EVEN,
    score_metrics: Sequence[str],
    score_probes: Sequence[str] = (),
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    feature_scale: Mapping[str, float] | None = None,
    scale_sensitive: Collection[str] = (),
) -> Ranking:
    """Rank techniques by GATE score: weighted mean of suppression and of error removed, paired with vanilla.

    measures: metrics and probes by name, which say how their numbers are read; a shift without one is a number whose
    best is 0. score_metrics, score_probes: what the score
    averages; those that vanilla lacks are left out (`Ranking` says which were used). Everything measured is
    reported.
    feature_scale: technique -> RMS feature norm over vanilla's; scale_sensitive: the shift metrics that follow
    it, to warn where they can be fooled.
    Raises IncomparableError where samples or cells differ, NonFiniteError where vanilla holds NaN or
    infinity; a technique with such numbers gets a NaN score and the last rank.
    """
    comparison = Comparison(vanilla, techniques, measures, weights, score_metrics, score_probes)
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
    uninformative = [m.name for m in comparison.uninformative if m.name in (*score_metrics, *score_probes)]
    suspects = [name for name in scale_sensitive if name in metrics]
    scale = {name: ratio for name, ratio in (feature_scale or {}).items() if name in techniques}
    notes = basis_notes(basis, uninformative, entries) + scale_notes(suspects, scale)
    notes += disagreements(entries, (*metrics, *probes))
    return Ranking(entries, basis, weights, metrics, probes, comparison.n, confidence, tuple(notes))


def winners(ranking: Ranking, top: int = 3, *, controls: Collection[str] = ()) -> tuple[str, ...]:
    """Names of at most `top` techniques that are better than vanilla and no controls, best first."""
    better = [e.name for e in ranking.entries if e.verdict == "better" and e.name not in controls]
    return tuple(better[:top])


def _entries(
    comparison: Comparison, intervals: Sequence[Interval], p: Floats, *, alpha: float
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
