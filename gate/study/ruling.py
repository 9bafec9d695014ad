"""The rules that ship (`gate.ranking.rules`): what each is made of, how it fares on what was left out, and its file."""

from __future__ import annotations

import functools

from gate.ranking.rules import Fitted, Rules
from gate.study.calibration import LEAST_DRAWS, Calibration
from gate.study.foretold import RuleReport, evaluate_rule, judge_rule, least_squares
from gate.study.tables import Board

# of what a screen measures, by what the samples have beside images; chosen when four of the nine domains were computed
RULES = {"masks": ("pixel-brier", "cosine@own"), "labels": ("brier", "eps"), "": ("eps", "cosine@own")}
# single quantities and other sums as rules, fitted in the same way: what a rule must beat, and what was tried
TRIED = (
    ("pixel-brier",),
    ("brier",),
    ("pixel-linear",),
    ("eps",),
    ("cosine@own",),
    ("laplacian",),
    ("pixel-brier", "eps"),
    ("pixel-brier", "brier"),
    ("pixel-brier", "brier", "eps"),
    ("pixel-linear", "eps"),
    ("brier", "cosine@own"),
    ("eps", "cosine@own", "image"),
)


def title(name: str) -> str:
    """How a rule is called in tables."""
    return f"rule: {name or 'no labels'}"


def rule_reports(board: Board, n: int) -> dict[str, RuleReport]:
    """Of the rules, and of single quantities, each fitted on other tasks and domains; none where there are too few of
    these, or of draws."""
    if not _can_be_left_out(board, n):
        return {}
    wanted = {title(name): of for name, of in RULES.items()} | {" + ".join(of): of for of in TRIED}
    return {told: _report(board, of, n) for told, of in wanted.items() if set(of) <= set(board.quantities)}


def shipped_reports(board: Board, rules: Rules, n: int) -> dict[str, RuleReport]:
    """Of rules as they are, on a board that none was fitted on; of those that were fitted at n images."""
    from scipy.stats import norm

    z, found = float(norm.ppf(0.975)), {}
    for name, each in rules.rules.items():
        for one in each:
            if one.n == n and set(one.coefficients) <= set(board.quantities):
                bounds = Calibration(one.floor, one.slope, z)
                found[title(name)] = judge_rule(board, one.coefficients, bounds, n=n)
    return found


def fitted_rules(board: Board, source: str) -> Rules | None:
    """rules.json, fitted on everything, at every number of images with enough draws; None where no rule can be."""
    sizes = [n for n in board.settings.sizes if _can_be_left_out(board, n)]
    made: dict[str, tuple[Fitted, ...]] = {}
    for name, of in RULES.items():
        if sizes and set(of) <= set(board.quantities):
            made[name] = tuple(_fitted(_report(board, of, n)) for n in sizes)
    return Rules(source=source, rules=made) if made else None


@functools.cache  # those that ship are told of on the page as well
def _report(board: Board, of: tuple[str, ...], n: int) -> RuleReport:
    return evaluate_rule(board, n=n, fit=least_squares(of))


def _fitted(report: RuleReport) -> Fitted:
    return Fitted(
        n=report.n,
        coefficients={name: round(c, 4) for name, c in report.coefficients.items()},
        floor=round(report.calibration.floor, 4),
        slope=report.calibration.slope,
        coverage=round(report.coverage[0], 3),
    )


def _can_be_left_out(board: Board, n: int) -> bool:
    tasks, families = {c.task for c in board.cases}, {c.place.family for c in board.cases}
    return board.sizes.count(n) >= LEAST_DRAWS and len(tasks) > 1 and len(families) > 1
