"""Agreement of every quantity with the truth, by number of images, task and subset, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.study import agreement
from gate.study.gains import Truth, gains, truth_of_place
from gate.study.places import Place
from gate.study.plan import StudySettings, draws_of
from gate.tasks import create_task

Array = npt.NDArray[Any]
POOLED = "pooled"
SUBSETS = ("all", "without leaks")
BASELINES = ("random", "other domains", "other tasks")
LEAST = 3  # techniques in an order


@dataclass(frozen=True, eq=False)
class Case:
    """One task at one place. values: (quantities, draws, techniques). leaks: (techniques,) bool."""

    place: Place
    task: str
    truth: Truth
    leaks: Array
    values: Array


@dataclass(frozen=True, eq=False)
class Board:
    """All cases, and what their axes mean. sizes: of each draw."""

    settings: StudySettings
    quantities: tuple[str, ...]
    sizes: tuple[int, ...]
    cases: tuple[Case, ...]

    def named(self, quantity: str, case: Case, n: int) -> Array:
        """(draws of n images, techniques)"""
        draws = [i for i, size in enumerate(self.sizes) if size == n]
        found: Array = case.values[self.quantities.index(quantity), draws]
        return found


def make_board(places: Sequence[Place], settings: StudySettings) -> Board:
    """Quantities that every place has, and the baselines: the order of chance, of other domains at that timestep, and
    of the place's other tasks."""
    tasks = [create_task(name).name for name in settings.tasks]
    truths = {(i, task): truth_of_place(p, task) for i, p in enumerate(places) for task in tasks}
    made = [gains(place, settings) for place in places]
    names = tuple(name for name in made[0] if all(name in m for m in made)) if made else ()
    sizes = tuple(n for n, _ in draws_of(settings))
    cases = []
    for i, place in enumerate(places):
        for task in tasks:
            rows = [made[i][name] for name in names]
            rows += _baselines(places, truths, i, task, tasks, len(sizes))
            leaks = np.array([bool(cell.leak) for cell in place.cells.values()])
            cases.append(Case(place, task, truths[i, task], leaks, np.stack(rows)))
    return Board(settings, names + BASELINES, sizes, tuple(cases))


def _baselines(
    places: Sequence[Place],
    truths: dict[tuple[int, str], Truth],
    i: int,
    task: str,
    tasks: Sequence[str],
    draws: int,
) -> list[Array]:
    here = places[i]
    rng = np.random.default_rng([i, tasks.index(task)])
    chance = rng.normal(size=(draws, len(here.cells)))
    elsewhere = np.zeros(len(here.cells))
    for k, technique in enumerate(here.techniques):
        told = [
            truths[j, task].share[p.techniques.index(technique)]
            for j, p in enumerate(places)
            if p.family != here.family and p.timestep == here.timestep and technique in p.cells
        ]
        elsewhere[k] = np.mean(told) if told else 0.0
    others = [truths[i, other].share for other in tasks if other != task]
    beside = np.mean(others, axis=0) if others else np.zeros(len(here.cells))
    return [chance, np.tile(elsewhere, (draws, 1)), np.tile(beside, (draws, 1))]


Figure = Callable[[Array, Truth, Array], Array]  # values (..., T), truth, rows of T -> (...)
FIGURES: dict[str, Figure] = {
    "spearman": lambda v, t, at: agreement.spearman(v, t.share[at]),
    "kendall": lambda v, t, at: agreement.kendall(v, t.share[at]),
    "top1_regret": lambda v, t, at: agreement.top1_regret(v, t.points[at]),
    "top3_recall": lambda v, t, at: agreement.top3_recall(v, t.share[at]),
    "best_in_top3": lambda v, t, at: agreement.best_in_top3(v, t.share[at]),
    "signs_right": lambda v, t, at: agreement.signs_right(v, t.sign[at]),
}


def tabulate(board: Board, *, resamples: int = 100, seed: int = 0) -> dict[str, Any]:
    """{figure: {"pooled" or task: {subset: {quantity: {n: {"value", "low", "high"}}}}}}.

    Means over cases and draws. Intervals of 95 % by resampling techniques and families of domains, both at once, the
    same for all quantities; a technique that is drawn twice counts twice in the ranks.
    """
    names = sorted({name for case in board.cases for name in case.place.cells})
    families = sorted({case.place.family for case in board.cases})
    rng = np.random.default_rng([seed, len(names)])
    drawn = [
        (
            dict(zip(names, rng.multinomial(len(names), np.full(len(names), 1 / len(names))), strict=True)),
            dict(
                zip(
                    families,
                    rng.multinomial(len(families), np.full(len(families), 1 / len(families))),
                    strict=True,
                )
            ),
        )
        for _ in range(resamples)
    ]
    found: dict[str, Any] = {figure: {} for figure in FIGURES}
    for subset in SUBSETS:
        point = _means(board, subset, None, None)
        spread = [_means(board, subset, t, f) for t, f in drawn]
        for figure in FIGURES:
            for scope, values in point[figure].items():
                each = np.stack([s[figure][scope] for s in spread if scope in s[figure]] or [values])
                low, high = _between(each)
                table = found[figure].setdefault(scope, {}).setdefault(subset, {})
                for q, name in enumerate(board.quantities):
                    table[name] = {
                        str(n): {
                            "value": float(values[q, k]),
                            "low": float(low[q, k]),
                            "high": float(high[q, k]),
                        }
                        for k, n in enumerate(board.settings.sizes)
                    }
    return found


def _means(
    board: Board, subset: str, techniques: dict[str, int] | None, families: dict[str, int] | None
) -> dict[str, dict[str, Array]]:
    """{figure: {scope: (quantities, sizes)}} of one resample; None counts everything once."""
    sums: dict[str, dict[str, list[tuple[float, Array]]]] = {figure: {} for figure in FIGURES}
    for case in board.cases:
        weight = 1 if families is None else families[case.place.family]
        times = np.array([1 if techniques is None else techniques[t] for t in case.place.techniques])
        if subset != "all":
            times = times * ~case.leaks
        if weight == 0 or (times > 0).sum() < LEAST:
            continue
        at = np.repeat(np.arange(len(times)), times)
        values = case.values[..., at]
        for figure, of in FIGURES.items():
            by_draw = of(values, case.truth, at)  # (quantities, draws)
            by_size = np.stack(
                [by_draw[:, [s == n for s in board.sizes]].mean(axis=1) for n in board.settings.sizes], axis=1
            )
            for scope in (POOLED, case.task):
                sums[figure].setdefault(scope, []).append((weight, by_size))
    return {
        figure: {scope: _weighted(parts) for scope, parts in scopes.items()}
        for figure, scopes in sums.items()
    }


def _between(each: Array) -> Array:
    """95 % of resamples, (2, ...); NaN where none has a number. each: (resamples, ...)."""
    known = np.isfinite(each).any(axis=0)
    found = np.nanquantile(np.where(known, each, 0), [0.025, 0.975], axis=0)
    return np.asarray(np.where(known, found, np.nan))


def _weighted(parts: list[tuple[float, Array]]) -> Array:
    """Mean over cases; those without a number (no sign is settled) are left out."""
    weights = np.array([w for w, _ in parts])[:, None, None]
    values = np.stack([v for _, v in parts])
    known = np.isfinite(values)
    total = (weights * known).sum(axis=0)
    mean = (weights * np.where(known, values, 0)).sum(axis=0) / np.where(total > 0, total, 1)
    return np.asarray(np.where(total > 0, mean, np.nan))


def stabilities(board: Board) -> dict[str, dict[str, float]]:
    """{quantity: {n: mean correlation between draws}}, over places, all techniques; not of sizes with one draw."""
    found: dict[str, dict[str, float]] = {}
    first = [case for case in board.cases if case.task == board.cases[0].task]
    for name in board.quantities:
        for n in board.settings.sizes:
            each = [agreement.stability(board.named(name, case, n)) for case in first]
            if np.isfinite(each).all():
                found.setdefault(name, {})[str(n)] = float(np.mean(each))
    return found
