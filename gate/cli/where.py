"""What `gate screen --where` prints: places, best first."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from gate.cli.output import Format, echo_rows, to_json

if TYPE_CHECKING:
    from gate.screening.where import Where


def print_where(found: Where, format: Format) -> None:
    """On stdout; what is said about a CSV goes to stderr."""
    from gate.report.table import interval

    if format is Format.json:
        typer.echo(to_json({**dataclasses.asdict(found), "sentence": found.sentence}))
        return
    said = format is Format.csv
    title = (
        f"Places for {found.technique} on {found.backbone}, n = {found.n} samples of {found.data}, {found.seeds} noise "
        f"seed{'' if found.seeds == 1 else 's'}"
    )
    for line in (title, "", found.sentence, ""):
        typer.echo(line, err=said)
    echo_rows(
        [{"rank": i, **dataclasses.asdict(p)} for i, p in enumerate(found.places, start=1)],
        {
            "#": lambda row: str(row["rank"]),
            "t": lambda row: str(row["timestep"]),
            "layer": lambda row: str(row["layer"]),
            "gain %": lambda row: interval(*(row["gain"][k] for k in ("value", "low", "high"))),
            "error": lambda row: f"{row['error']:.4f}",
            "verdict": lambda row: {"better": "better", "worse": "worse", "none": ""}[row["verdict"]],
            "as good as the best": lambda row: "yes" if row["as_good"] else "",
        },
        format,
    )
    typer.echo(
        f"\ngain: share of the error of {found.probe} at t = {found.base[0]} with all layers that is gone, in %, "
        "higher is better, [95 % interval over samples, paired]; error: that of the probe, lower is better. verdict: "
        f"Holm over all places. all: {', '.join(found.layers)} together.",
        err=said,
    )
