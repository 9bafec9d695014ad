"""A study's cells to results.json: what is told, in one dictionary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gate.errors import ConfigurationError
from gate.ranking.rules import Rules
from gate.screening.config import ScreenConfig
from gate.study.ceiling import ceilings
from gate.study.cell import Cell
from gate.study.costs import cost_ratios
from gate.study.foretold import RuleReport
from gate.study.places import places_of
from gate.study.plan import StudySettings, groups_of
from gate.study.ruling import rule_reports, shipped_reports
from gate.study.tables import POOLED, Board, make_board, stabilities, tabulate

SCHEMA = 1


def board_of(cells: Sequence[Cell], settings: StudySettings) -> Board:
    """Raises ConfigurationError where no place has vanilla and three techniques."""
    places = places_of(cells)
    if not places:
        raise ConfigurationError(
            "No place is ready: three techniques and vanilla at one timestep of one domain; let gate study go on."
        )
    return make_board(places, settings)


def analyse(
    cells: Sequence[Cell],
    settings: StudySettings,
    board: Board,
    *,
    rules: Rules | None = None,
    resamples: int = 100,
) -> dict[str, Any]:
    """All that docs/study.md tells of a board: of the study's first timesteps, with rules fitted on other tasks and
    domains, or, where `rules` are given, of further timesteps, with those as they are."""
    places = list({id(case.place): case.place for case in board.cases}.values())
    usual = ScreenConfig.model_fields["samples"].default
    default = min(settings.sizes, key=lambda n: abs(n - usual))
    fitted = rules is None
    wanted = sum(len(g.techniques) for g in groups_of(settings) if (g.timestep in settings.fitted) == fitted)
    tables = tabulate(board, resamples=resamples)
    judged = rule_reports(board, default) if rules is None else shipped_reports(board, rules, default)
    reports = {name: _plain(report) for name, report in judged.items()}
    coverage = {name: report["coverage"] for name, report in reports.items()}
    return {
        "schema_version": SCHEMA,
        "settings": settings.as_json(),
        "cells": {"done": len(cells), "of": wanted},
        "n": default,
        "techniques": sorted({name for place in places for name in place.cells}),
        "leaks": sorted({name for p in places for name, cell in p.cells.items() if cell.leak}),
        "tasks": sorted({case.task for case in board.cases}),
        "domains": sorted({place.domain for place in places}),
        "timesteps": sorted({place.timestep for place in places}),
        "places": len(places),
        "cases": len(board.cases),
        "quantities": list(board.quantities),
        **tables,
        "stability": stabilities(board),
        "ceiling": ceilings(board),
        "coverage": {POOLED: coverage, **_coverage_by_task(reports)},
        "cost_ratio": cost_ratios(cells, settings),
        "rules": reports,
        "truth": truth_table(board),
        "seconds": seconds_of(cells),
        "unseen": None,
    }


def _plain(report: RuleReport) -> dict[str, Any]:
    """With every (value, low, high) as a dictionary."""

    def spelled(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: spelled(v) for k, v in value.items()}
        return dict(zip(("value", "low", "high"), value, strict=True)) if isinstance(value, tuple) else value

    found: dict[str, Any] = spelled(dataclasses.asdict(report))
    return found


def _coverage_by_task(reports: dict[str, Any]) -> dict[str, dict[str, Any]]:
    tasks = sorted({task for report in reports.values() for task in report["by_task"]})
    return {task: {name: report["by_task"][task] for name, report in reports.items()} for task in tasks}


def truth_table(board: Board) -> list[dict[str, Any]]:
    """What training said: points over vanilla of every technique, by place and task, and which signs are settled."""
    return [
        {
            "domain": case.place.domain,
            "timestep": case.place.timestep,
            "task": case.task,
            "vanilla": 100 * (1 - case.truth.vanilla),
            "points": dict(zip(case.place.techniques, case.truth.points.tolist(), strict=True)),
            "settled": dict(zip(case.place.techniques, case.truth.sign.tolist(), strict=True)),
        }
        for case in board.cases
    ]


def seconds_of(cells: Sequence[Cell]) -> dict[str, float]:
    """Means over cells of each part's seconds, on the machine that computed them."""
    keys = sorted({key for cell in cells for key in cell.seconds})
    return {
        key: sum(cell.seconds.get(key, 0.0) for cell in cells) / max(1, sum(key in c.seconds for c in cells))
        for key in keys
    }
