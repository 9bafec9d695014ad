"""`gate resume RUN`: finish an interrupted screening, and make what a finished run lacks."""

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
    """Make what a run lacks; what was finished is not measured again.

    That is: techniques of an interrupted screening, results.json where it was lost or edited, figures.
    """
    from gate import screening
    from gate.cli.progress import reporting
    from gate.cli.screen import finish, printing_what_is_complete

    with reporting(quiet=quiet) as (progress, log), printing_what_is_complete(format):
        done = screening.resume(run, progress=progress, log=log)
    finish(done, format)
