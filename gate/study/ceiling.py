"""How well the truth repeats itself: heads are judged on some hundred images, and nothing agrees better than that."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from gate.measure import share_removed
from gate.study import agreement
from gate.study.foretold import interval_over_families
from gate.study.tables import LEAST, POOLED, SUBSETS, Board, Case

Bounded = dict[str, float]


def ceilings(
    board: Board, *, splits: int = 20, resamples: int = 400, seed: int = 0
) -> dict[str, dict[str, dict[str, Bounded]]]:
    """{"pooled" or task: {subset: {"halves", "most": {"value", "low", "high"}}}}.

    halves: Spearman correlation between the true orders on two halves of the test samples, under the same heads, mean
    over `splits` random halvings and cases. most: what a predictor that knows the true order could reach against the
    truth that is measured, sqrt(2 r / (1 + r)) of each case's r (Spearman 1910, Brown 1910): attenuation, an
    approximation for ranks, and from above, as heads trained anew would differ too. Intervals of 95 % by resampling
    families of domains.
    """
    families = sorted({case.place.family for case in board.cases})
    found: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for case in board.cases:
        for subset, r in _halves(case, splits, seed).items():
            most = float(np.sqrt(2 * max(r, 0.0) / (1 + max(r, 0.0))))
            for scope in (POOLED, case.task):
                of = found.setdefault(scope, {}).setdefault(
                    subset, {"halves": defaultdict(list), "most": defaultdict(list)}
                )
                of["halves"][case.place.family].append(r)
                of["most"][case.place.family].append(most)

    def told(by_family: dict[str, list[float]]) -> Bounded:
        values = interval_over_families(by_family, families, resamples, seed)
        return dict(zip(("value", "low", "high"), values, strict=True))

    return {
        scope: {subset: {k: told(v) for k, v in figures.items()} for subset, figures in subsets.items()}
        for scope, subsets in found.items()
    }


def _halves(case: Case, splits: int, seed: int) -> dict[str, float]:
    """Mean correlation between halves, of each subset of techniques that is an order."""
    place, task = case.place, case.task
    n = place.vanilla.heads(task).shape[1]
    rng = np.random.default_rng([seed, n])
    first = np.array([rng.permutation(n) < n // 2 for _ in range(splits)], np.float64)
    both = [first, 1 - first]
    shares = []  # of each half: (splits, techniques)
    for half in both:
        base, *errors = (c.errors(task, half).mean(axis=0) for c in (place.vanilla, *place.cells.values()))
        shares.append(share_removed(np.stack(errors, axis=1)[..., None], base[:, None, None]))
    found = {}
    for subset in SUBSETS:
        at = np.ones(len(case.leaks), np.bool_) if subset == "all" else ~case.leaks
        if at.sum() >= LEAST:
            pairs = [agreement.spearman(a[at], b[at]) for a, b in zip(*shares, strict=True)]
            found[subset] = float(np.mean(pairs))
    return found
