"""`gate plot RUN`: draw the figures of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gate.cli.output import DebugOption
from gate.names import harmless


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    output: Annotated[
        Path | None, typer.Option(help="Where the figures go; by default into figures/ of the run.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Draw every figure of a run as PNG and SVG, and print their paths."""
    from gate.errors import ConfigurationError
    from gate.runs.directory import open_run

    opened = open_run(run)
    from gate.cli.rank import UNSEALED
    from gate.report.figures import draw_all

    if not opened.sealed:
        typer.echo(UNSEALED.format(run=harmless(str(run))), err=True)

    folder = output or opened.path / "figures"
    try:
        files = draw_all(opened, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"{folder} cannot be written ({reason}); choose another --output."
        ) from error
    for file in files:
        typer.echo(harmless(str(file)))
