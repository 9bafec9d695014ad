"""`gate resume RUN`: finish an interrupted screening."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gate.cli.output import DebugOption, Format, FormatOption, QuietOption


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of an interrupted run.")],
    format: FormatOption = Format.table,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Finish an interrupted screening; what was finished is not measured again."""
    from gate import screening
    from gate.cli.progress import reporting
    from gate.cli.screen import finish

    with reporting(quiet=quiet) as (progress, log):
        done = screening.resume(run, progress=progress, log=log)
    finish(done, format)
