"""`gate task NAME`: heads trained in full on a technique's features, and what they get right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gate.cli.output import DebugOption, Format, FormatOption, QuietOption, echo_rows, flag, to_json
from gate.names import harmless

if TYPE_CHECKING:
    from gate.ranking.statistics import Interval
    from gate.tasks.evaluate import TaskResult


def task(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A task, with settings in brackets; see gate list tasks.")
    ],
    technique: Annotated[
        str | None, flag("A technique, as in gate screen; a+b.", "vanilla alone", "NAME")
    ] = None,
    amalgamate: Annotated[
        str | None, flag("Amalgamate these instead: TECHNIQUE or TECHNIQUE@T.", "", "LIST")
    ] = None,
    unweighted: Annotated[
        str | None, flag("Layers of the first source that join the amalgam unweighted.", "", "LIST")
    ] = None,
    assigners: Annotated[int | None, flag("Assigners of the amalgamation.", "3", "N")] = None,
    sparsity: Annotated[float | None, flag("Weight g1 of sparsity.", "0.01", "X")] = None,
    diversity: Annotated[float | None, flag("Weight g2 of diversity.", "0.01", "X")] = None,
    per_channel: Annotated[
        bool | None, typer.Option("--per-channel", help="Weigh each channel by itself. [default: False]")
    ] = None,
    data: Annotated[
        str | None, flag("A named data set, or a folder in a public layout.", "scenes-held-out", "NAME|DIR")
    ] = None,
    samples: Annotated[
        int | None, flag("Images, or pairs, to learn from.", "the task's own; all of a folder", "N")
    ] = None,
    test: Annotated[
        int | None, flag("Images, or pairs, to judge.", "the task's own; all of a folder", "N")
    ] = None,
    layers: Annotated[str | None, flag("Layers; see gate list layers.", "paper", "LIST")] = None,
    timestep: Annotated[int | None, flag("Noise level.", "50", "T")] = None,
    seed: Annotated[int | None, flag("Noise seed, and of what is drawn from the data.", "0", "N")] = None,
    seeds: Annotated[int | None, flag("Heads, one a seed.", "3", "N")] = None,
    backbone: Annotated[str | None, flag("tiny, a hub id, or a folder.", "tiny", "NAME")] = None,
    image_size: Annotated[int | None, flag("Pixels a side; the backbone's own by default.", "", "N")] = None,
    device: Annotated[str | None, flag("auto, cpu, cuda, mps.", "auto", "NAME")] = None,
    dtype: Annotated[str | None, flag("auto, float32, float16, bfloat16.", "auto", "NAME")] = None,
    batch_size: Annotated[int | None, flag("Images through the backbone at once.", "8", "N")] = None,
    resamples: Annotated[int | None, flag("Bootstrap resamples, 200 or more.", "2000", "N")] = None,
    output: Annotated[
        str | None, flag("A folder for heads and results; the same command goes on there.", "", "DIR")
    ] = None,
    format: FormatOption = Format.table,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train heads in full on a technique's features, and report what they get right beside vanilla's."""
    given = {k: v for k, v in locals().items() if v is not None and k not in _NOT_SETTINGS}
    given["task"] = given.pop("name")
    from gate.cli.progress import reporting
    from gate.tasks.config import make_config

    config = make_config(given)
    with reporting(quiet=quiet) as (progress, log):
        from gate.tasks.evaluate import evaluate

        result = evaluate(config, progress=progress, log=log)
    _print(result, format)


_NOT_SETTINGS = frozenset({"format", "quiet", "debug"})


def _print(result: TaskResult, format: Format) -> None:
    """On stdout; notes are part of JSON, and go to stderr beside a CSV."""
    if format is Format.json:
        typer.echo(to_json({**result.as_json(), "path": str(result.path) if result.path else None}))
        return
    rows = [
        {"row": row, "arm": row.arm, "n": row.value.n, "trained_on": result.facts["trained_on"]}
        for row in result.rows
    ]
    echo_rows(
        rows,
        {
            "features": lambda r: str(r["arm"]),
            "figure (higher is better)": lambda r: str(r["row"].figure),
            "value %": lambda r: _interval(r["row"].value),
            "seeds": lambda r: f"+- {r['row'].spread:.2f} ({r['row'].seeds})" if r["row"].seeds > 1 else "1",
            "points over vanilla": lambda r: _interval(r["row"].gain, sign=True) if r["row"].gain else "",
            "n": lambda r: str(r["n"]),
        },
        format,
    )
    said = [f"{result.task}: trained on {result.facts['trained_on']}, judged on {result.facts['judged_on']}."]
    said += list(result.notes)
    if result.path:
        said.append(f"Heads and figures: {result.path}")
    for line in said:
        typer.echo(harmless(line), err=format is Format.csv)


def _interval(found: Interval, *, sign: bool = False) -> str:
    show = "{:+.2f}" if sign else "{:.2f}"
    if not math.isfinite(found.low):
        return f"{show.format(found.value)} (no interval of {found.n})"
    return f"{show.format(found.value)} [{show.format(found.low)}, {show.format(found.high)}]"


def listed() -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Rows and columns of `gate list tasks`."""
    from gate.tasks import TASKS

    rows = [facts(name) for name in TASKS]
    return rows, {
        "name": lambda r: str(r["name"]),
        "needs": lambda r: str(r["needs"]),
        "figure": lambda r: ", ".join(m["name"] for m in r["figures"]),
        "better": lambda r: str(r["figures"][0]["direction"]),
        "summary": lambda r: str(r["summary"]),
    }


def facts(name: str) -> dict[str, Any]:
    """All about a task."""
    from gate.tasks import TASKS

    cls = TASKS[name]
    figures = [
        {"name": m.name, "summary": m.summary, "direction": m.direction, "range": list(m.range)}
        for m in cls.measures
    ]
    return {
        "name": name,
        "summary": cls.summary,
        "source": cls.source,
        "needs": cls.needs,
        "figures": figures,
        "cost": cls.cost,
        "settings": cls().settings,
    }
