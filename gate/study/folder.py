"""A study's folder: settings.json, cells/, and what is made of them. Killed at any time, it loses a cell a worker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gate.errors import ConfigurationError, DamagedError, UsageError
from gate.runs.directory import plain, write_json
from gate.study.cell import has_cell
from gate.study.plan import CellKey, StudySettings, all_keys, groups_of, weight_of

SETTINGS = "settings.json"
RULES_FILE = "rules.json"


def read_settings(folder: Path) -> StudySettings:
    """Of a study that was begun. Raises UsageError where there is none, DamagedError where they do not read."""
    file = folder / SETTINGS
    if not file.is_file():
        raise UsageError(
            f"{folder} holds no {SETTINGS}, so it is no study; begin one: gate study --output DIR"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw.pop("settings_version", 1)
        known = {f.name for f in dataclasses.fields(StudySettings) if f.init}
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in known
        }
        settings = StudySettings(**given)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{file} is damaged; put it back, or begin another study.") from error
    if version != settings.settings_version:
        raise DamagedError(f"{file} is of another version of gate ({version}); begin another study.")
    return settings


def open_study(folder: Path, settings: StudySettings) -> StudySettings:
    """Begin a study, or go on with one. Raises UsageError where the folder holds another study, or something else."""
    if (folder / SETTINGS).is_file():
        before = read_settings(folder)
        if plain(before.as_json()) != plain(settings.as_json()):
            changed = [k for k, v in before.as_json().items() if settings.as_json()[k] != v]
            raise UsageError(
                f"{folder} is a study with other {', '.join(changed)}; choose another --output, or leave the flags out."
            )
        return before
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is no study; choose another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS, settings.as_json())
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror}); choose another --output."
        ) from error
    return settings


def run_study(
    folder: Path,
    settings: StudySettings,
    *,
    workers: int,
    progress: Callable[[str, int, int], None],
    log: Callable[[str], None],
) -> None:
    """Compute every cell that is missing. progress(what, done, total) counts a cell by what it costs.

    Raises ConfigurationError at the end, with what failed; the other cells are kept.
    """
    from gate.backbones import load_backbone
    from gate.study.work import compute

    groups = groups_of(settings)
    weights = {key: weight_of(key) for key in all_keys(groups)}
    waiting = {key for key in weights if not has_cell(folder, key)}
    total = round(sum(weights.values()))

    def tick() -> None:
        waiting.difference_update([key for key in waiting if has_cell(folder, key)])
        left = round(sum(weights[key] for key in waiting))
        progress(_told(len(weights) - len(waiting), len(weights)), total - left, total)

    if not waiting:
        return
    log(f"{len(waiting)} of {len(weights)} cells to compute, {workers} at a time")
    backbone = load_backbone(settings.backbone, device="cpu")
    tick()
    failed = compute(settings, groups, backbone, folder, workers=workers, tick=tick, log=lambda _: None)
    tick()
    if failed:
        raise ConfigurationError(
            f"The study is not whole: {'; '.join(failed)}. What is done is kept; the same command goes on."
        )


def _told(done: int, of: int) -> str:
    return f"{done} of {of} cells"


def missing(folder: Path, settings: StudySettings) -> list[CellKey]:
    """Cells that are not there yet."""
    return [key for key in all_keys(groups_of(settings)) if not has_cell(folder, key)]


def conclude(folder: Path, page: Path, *, resamples: int = 100) -> dict[str, Any]:
    """Analyse what is there, and write page/study.md, page/study/ with results.json, the rules and figures; returns the
    results."""
    from gate.study.analysis import analyse, board_of
    from gate.study.cell import load_cells
    from gate.study.page import write_page
    from gate.study.pictures import draw_all
    from gate.study.places import places_of
    from gate.study.ruling import fitted_rules

    settings = read_settings(folder)
    cells = load_cells(folder)
    known = [cell for cell in cells if cell.key.timestep in settings.fitted]
    board = board_of(known, settings)
    results = analyse(known, settings, board, resamples=resamples)
    rules = fitted_rules(board, source_of(results))
    others = [cell for cell in cells if cell.key.timestep not in settings.fitted]
    if rules is not None and places_of(others):
        unseen = board_of(others, settings)
        results["unseen"] = analyse(others, settings, unseen, rules=rules, resamples=resamples)
    beside = page / "study"
    beside.mkdir(parents=True, exist_ok=True)
    write_json(beside / "results.json", results)
    if rules is not None:
        write_json(beside / RULES_FILE, rules.model_dump(mode="json"))
    draw_all(results, beside)
    write_page(results, page / "study.md")
    return results


def source_of(results: dict[str, Any]) -> str:
    """What the rules were fitted on, in a line."""
    times = ", ".join(map(str, results["timesteps"]))
    return (
        f"gate study on {results['settings']['backbone']}: {len(results['techniques'])} techniques, "
        f"{len(results['tasks'])} tasks, {len(results['domains'])} domains, t = {times} ({results['cases']} cases)"
    )
