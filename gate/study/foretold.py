"""How well a rule foretells what training would say, where it was not fitted: other tasks, domains, timesteps."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.errors import ConfigurationError
from gate.study import agreement
from gate.study.calibration import (
    LEAST_DRAWS,
    Calibration,
    Coefficients,
    Example,
    calibrate,
    residuals,
)
from gate.study.tables import Board, Case

Array = npt.NDArray[Any]
Fit = Callable[[Sequence[Example]], Coefficients]
Told = tuple[Example, float, bool]  # with the prediction, and whether its interval holds the truth
BY_TIMESTEP = ("coverage", "spearman", "without_leaks", "regret", "best_in_top3")


@functools.lru_cache(maxsize=8)  # every rule is judged on the same
def examples_of(board: Board, n: int) -> tuple[Example, ...]:
    """Every (place, task, technique, draw of n images)."""
    found = []
    for case in board.cases:
        draws = [i for i, size in enumerate(board.sizes) if size == n]
        for j, technique in enumerate(case.place.techniques):
            for d, i in enumerate(draws):
                values = dict(zip(board.quantities, case.values[:, i, j].tolist(), strict=True))
                found.append(
                    Example(
                        case.place.domain,
                        case.place.family,
                        case.place.timestep,
                        case.task,
                        technique,
                        bool(case.leaks[j]),
                        d,
                        values,
                        float(case.truth.share[j]),
                    )
                )
    return tuple(found)


def least_squares(names: Sequence[str]) -> Fit:
    """A fit: the shares as a plain sum of some quantities, coefficients >= 0 and no constant (vanilla stays 0), by
    least squares over the examples."""
    from scipy.optimize import nnls

    def fit(examples: Sequence[Example]) -> Coefficients:
        x = np.array([[e.quantities[name] for name in names] for e in examples])
        weights, _ = nnls(x, np.array([e.share for e in examples]))
        return dict(zip(names, weights.tolist(), strict=True))

    return fit


@dataclass(frozen=True)
class RuleReport:
    """Of what it was not fitted on. n: images of a draw; cases: (task, place) pairs.

    coverage: share of truths inside their prediction intervals; by_task, by_family: the same of each left out. rmse: of
    the share. spearman, kendall, regret (points), best_in_top3: means over cases and draws; without_leaks: Spearman
    without techniques that see the input's own pixels. each with (value, low, high), by resampling families.
    by_timestep: coverage, spearman, without_leaks, regret and best_in_top3 of each timestep's cases by themselves.
    coefficients, calibration: the rule that ships, fitted on everything, and how the truth strays from it.
    """

    n: int
    cases: int
    coverage: tuple[float, float, float]
    by_task: Mapping[str, tuple[float, float, float]]
    by_family: Mapping[str, float]
    rmse: tuple[float, float, float]
    spearman: tuple[float, float, float]
    without_leaks: tuple[float, float, float]
    kendall: tuple[float, float, float]
    regret: tuple[float, float, float]
    best_in_top3: tuple[float, float, float]
    by_timestep: Mapping[str, Mapping[str, tuple[float, float, float]]]
    coefficients: Coefficients
    calibration: Calibration


def evaluate_rule(
    board: Board,
    *,
    n: int,
    fit: Fit,
    confidence: float = 0.95,
    resamples: int = 400,
    seed: int = 0,
) -> RuleReport:
    """Leave one task and one family of domains out, together, in turn.

    fit: made anew from the examples of other tasks in other families, and the intervals calibrated on them alone.
    Raises ConfigurationError where there are not two tasks and two families, or too few draws of n images.
    """
    if board.sizes.count(n) < LEAST_DRAWS:
        raise ConfigurationError(
            f"A rule for n = {n} wants {LEAST_DRAWS} draws of as many images, to tell their spread."
        )
    examples = examples_of(board, n)
    folds = sorted({(e.task, e.family) for e in examples})
    if len({t for t, _ in folds}) < 2 or len({f for _, f in folds}) < 2:
        raise ConfigurationError(
            "A rule is judged on tasks and domains that it was not fitted on: the study needs two of each or more."
        )
    told: list[Told] = []
    for task, family in folds:
        train = [e for e in examples if e.task != task and e.family != family]
        made = fit(train)
        bounds = calibrate(residuals(made, train), confidence)
        told += _told(made, bounds, [e for e in examples if (e.task, e.family) == (task, family)])
    whole = fit(examples)
    return _report(board, n, told, whole, calibrate(residuals(whole, examples), confidence), resamples, seed)


def judge_rule(
    board: Board, made: Coefficients, bounds: Calibration, *, n: int, resamples: int = 400, seed: int = 0
) -> RuleReport:
    """A rule as it is, on cases that it was not fitted on. Raises ConfigurationError where draws of n are too few."""
    if board.sizes.count(n) < LEAST_DRAWS:
        raise ConfigurationError(
            f"To judge a rule, {LEAST_DRAWS} draws of {n} images are wanted: their spread counts."
        )
    told = _told(made, bounds, examples_of(board, n))
    return _report(board, n, told, made, bounds, resamples, seed)


def _told(made: Coefficients, bounds: Calibration, examples: Sequence[Example]) -> list[Told]:
    out = residuals(made, examples)
    inside = np.abs(out.truth - out.predicted) <= bounds.half_width(out.predicted, out.sampling)
    return list(zip(examples, out.predicted.tolist(), inside.tolist(), strict=True))


def _report(
    board: Board,
    n: int,
    told: Sequence[Told],
    made: Coefficients,
    bounds: Calibration,
    resamples: int,
    seed: int,
) -> RuleReport:
    held: dict[tuple[str, str], list[bool]] = defaultdict(list)  # by (task, family)
    # of each figure: (timestep, family, value)
    values: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
    guess: dict[tuple[str, str, int], dict[tuple[str, int], float]] = defaultdict(dict)
    for e, s, inside in told:
        held[e.task, e.family].append(inside)
        values["coverage"].append((e.timestep, e.family, float(inside)))
        values["square"].append((e.timestep, e.family, (e.share - s) ** 2))
        guess[e.task, e.domain, e.timestep][e.technique, e.draw] = s
    for case in board.cases:
        place = case.place
        predicted = _matrix(case, guess[case.task, place.domain, place.timestep])
        for name, value in _orders(case, predicted).items():
            values[name].append((place.timestep, place.family, value))
    families = sorted({e.family for e, _, _ in told})

    def spread(name: str, at: int | None = None) -> tuple[float, float, float]:
        """Of a figure, at one timestep or all."""
        by_family: dict[str, list[float]] = defaultdict(list)
        for t, family, value in values[name]:
            if at is None or t == at:
                by_family[family].append(value)
        return interval_over_families(by_family, families, resamples, seed)

    def of_task(task: str) -> tuple[float, float, float]:
        by_family = {f: [float(x) for x in held[task, f]] for f in families}
        return interval_over_families(by_family, families, resamples, seed)

    inside_by_family = {f: [x for (_, g), v in held.items() if g == f for x in v] for f in families}
    tasks = sorted({e.task for e, _, _ in told})
    rmse = spread("square")
    return RuleReport(
        n=n,
        cases=len(board.cases),
        coverage=spread("coverage"),
        by_task={task: of_task(task) for task in tasks},
        by_family={f: float(np.mean(v)) for f, v in inside_by_family.items()},
        rmse=(math.sqrt(rmse[0]), math.sqrt(rmse[1]), math.sqrt(rmse[2])),
        spearman=spread("spearman"),
        without_leaks=spread("without_leaks"),
        kendall=spread("kendall"),
        regret=spread("regret"),
        best_in_top3=spread("best_in_top3"),
        by_timestep={
            str(t): {name: spread(name, t) for name in BY_TIMESTEP}
            for t in sorted({e.timestep for e, _, _ in told})
        },
        coefficients=made,
        calibration=bounds,
    )


def _matrix(case: Case, guess: Mapping[tuple[str, int], float]) -> Array:
    """(draws, techniques)"""
    draws = 1 + max(d for _, d in guess)
    return np.array([[guess[name, d] for name in case.place.techniques] for d in range(draws)])


def _orders(case: Case, predicted: Array) -> dict[str, float]:
    truth, free = case.truth, ~case.leaks
    found = {
        "spearman": agreement.spearman(predicted, truth.share),
        "kendall": agreement.kendall(predicted, truth.share),
        "regret": agreement.top1_regret(predicted, truth.points),
        "best_in_top3": agreement.best_in_top3(predicted, truth.share),
    }
    if free.sum() >= 3:
        found["without_leaks"] = agreement.spearman(predicted[:, free], truth.share[free])
    return {name: float(np.mean(value)) for name, value in found.items()}


def interval_over_families(
    by_family: Mapping[str, Sequence[float]], families: Sequence[str], resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean over all values, and its 95 % interval by resampling families."""
    sums = np.array([sum(by_family.get(f, ())) for f in families])
    counts = np.array([len(by_family.get(f, ())) for f in families], float)
    if counts.sum() == 0:
        return (math.nan, math.nan, math.nan)
    rng = np.random.default_rng([seed, len(families)])
    drawn = rng.multinomial(len(families), np.full(len(families), 1 / len(families)), resamples)
    total = drawn @ counts
    means = (drawn @ sums)[total > 0] / total[total > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)
