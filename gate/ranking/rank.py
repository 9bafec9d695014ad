"""From raw numbers per sample to a ranking: GATE score, paired intervals, Holm's p, what ties, winners, notes.

Everything is in one unit, the share of vanilla's error that is gone: 1 - error_T / error_vanilla, in
(-inf, 1]. Vanilla is exactly 0, 1 is an exact match, and a negative share is an error added.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gate.measure import Measure
from gate.ranking.comparison import Comparison
from gate.ranking.entry import Basis, Entry, Evidence, Ranking, Rule, Verdict, Weights
from gate.ranking.notes import basis_notes, disagreements, scale_notes
from gate.ranking.statistics import Interval, Studentised, holm, letters, places, studentise

EVEN = Weights()


def rank(
    vanilla: Evidence,
    techniques: Mapping[str, Evidence],
    *,
    measures: Mapping[str, Measure],
    weights: Weights | Rule = EVEN,
    score_metrics: Sequence[str],
    score_probes: Sequence[str] = (),
    seed: int,
    resamples: int = 2000,
    confidence: float = 0.95,
    feature_scale: Mapping[str, float] | None = None,
    scale_sensitive: Collection[str] = (),
) -> Ranking:
    """Rank techniques by GATE score: a fitted rule's prediction, or a weighted mean of suppression and error removed.

    measures: metrics and probes by name, which say how their numbers are read; a shift without one is a number whose
    best is 0. weights: a rule predicts what a trained head would gain, with an interval of prediction beside that of
    these samples; weights average. score_metrics, score_probes: what is shown as suppression and probe gain, and
    averaged by weights; those that vanilla lacks are left out (`Ranking` says which were used). Everything measured is
    reported.
    feature_scale: technique -> RMS feature norm over vanilla's; scale_sensitive: the shift metrics that follow
    it, to warn where they can be fooled.
    Raises IncomparableError where samples or cells differ, NonFiniteError where vanilla holds NaN or
    infinity; a technique with such numbers gets a NaN score and the last rank.
    """
    comparison = Comparison(vanilla, techniques, measures, weights, score_metrics, score_probes)
    resamples = max(
        resamples, 100 * len(comparison.names)
    )  # the smallest p must survive Holm over all of them
    found = studentise(
        comparison.quantities,
        comparison.n,
        resamples=resamples,
        seed=seed,
        batch=comparison.batch,
        interactions=comparison.interactions(),
    )
    rule = weights if isinstance(weights, Rule) else None
    entries = _entries(comparison, found, confidence, rule)
    metrics, probes = (tuple(m.name for m in part) for part in comparison.shown.values())
    kinds = {m.kind for m in comparison.coefficients}
    basis: Basis = (
        "shift only" if kinds == {"shift"} else "probes only" if kinds == {"probe"} else "shift and probes"
    )
    uninformative = [m.name for m in comparison.uninformative if m.name in (*score_metrics, *score_probes)]
    counted = [m.name for m in comparison.coefficients]
    suspects = [name for name in scale_sensitive if name in counted]
    scale = {name: ratio for name, ratio in (feature_scale or {}).items() if name in techniques}
    notes = basis_notes(basis, uninformative, entries) + scale_notes(suspects, scale)
    notes += disagreements(entries, (*metrics, *probes))
    even = EVEN if isinstance(weights, Rule) else weights
    return Ranking(entries, basis, even, metrics, probes, comparison.n, confidence, tuple(notes), rule)


def _foretold(score: Interval, error: float, rule: Rule, confidence: float) -> Interval:
    """What a trained head is foretold to gain: the score, and how far the truth strays from it beside the sample.

    error: the score's standard error over samples. The two are independent, so their squares add up. A technique that
    differs from vanilla nowhere will not with a trained head.
    """
    from scipy.stats import norm

    same = score.value == 0 and error == 0
    strays = 0.0 if same else math.hypot(error, rule.floor, rule.slope * score.value)
    half = float(norm.ppf(0.5 + confidence / 2)) * strays
    return Interval(score.value, score.value - half, min(score.value + half, 1.0), score.n)


def winners(ranking: Ranking, top: int = 3, *, controls: Collection[str] = ()) -> tuple[str, ...]:
    """Names of at most `top` techniques that are better than vanilla and no controls, best first."""
    better = [e.name for e in ranking.entries if e.verdict == "better" and e.name not in controls]
    return tuple(better[:top])


def _entries(
    comparison: Comparison, found: Studentised, confidence: float, rule: Rule | None
) -> tuple[Entry, ...]:
    names, block, alpha = comparison.names, comparison.block, 1 - confidence
    first_pair = len(names) * block
    intervals = [
        replace(i, high=min(i.high, 1.0)) for i in found.intervals(confidence)
    ]  # no share is above 1
    blocks = [intervals[i : i + block] for i in range(0, first_pair, block)]
    p = found.p[:first_pair:block]
    adjusted = holm(p)
    numbers = [i for i in range(len(names)) if not math.isnan(blocks[i][0].value)]
    order = sorted(
        range(len(names)), key=lambda i: (-blocks[i][0].value if i in numbers else math.inf, names[i])
    )
    differ = np.zeros((len(names), len(names)), dtype=np.bool_)
    for (i, j), told in zip(comparison.pairs, found.part(slice(first_pair, None)).differ(alpha), strict=True):
        differ[i, j] = differ[j, i] = told
    ranked = [i for i in order if i in numbers]
    letter = dict(zip(ranked, letters(differ[np.ix_(ranked, ranked)]), strict=True))
    rank_of = dict(zip(order, places([printed(blocks[i][0].value) for i in order]), strict=True))
    entries = []
    for i in order:
        score, shift, probe, *each = blocks[i]
        measured = comparison.techniques[names[i]]
        values = [(m, v) for m, v in zip(comparison.measures, each, strict=True) if m in measured]
        entries.append(
            Entry(
                name=names[i],
                rank=rank_of[i],
                score=score,
                foretold=_foretold(score, float(found.error[i * block]), rule, confidence) if rule else None,
                p=float(p[i]),
                p_holm=float(adjusted[i]),
                verdict=_verdict(score.value, float(adjusted[i]), alpha),
                tied_with=tuple(names[j] for j in ranked if i in numbers and j != i and not differ[i, j]),
                letters=letter.get(i, ""),
                mean_suppression=shift if comparison.shown["shift"] else None,
                mean_error_removed=probe if comparison.shown["probe"] else None,
                suppression={m.name: v for m, v in values if m.kind == "shift"},
                probes={m.name: v for m, v in values if m.kind == "probe"},
            )
        )
    return tuple(entries)


def printed(share: float) -> float:
    """A share as tables print it, in per cent: one decimal, none from 100 on."""
    return share if math.isnan(share) else round(100 * share, 1 if abs(share) < 1 else None)


def _verdict(score: float, p_holm: float, alpha: float) -> Verdict:
    if not p_holm <= alpha:
        return "none"
    return "better" if score > 0 else "worse"
