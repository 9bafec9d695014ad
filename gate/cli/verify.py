"""`gate verify RUN`: are the files what gate wrote, and do the numbers come out again?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gate.cli.output import DebugOption, QuietOption


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    seed: Annotated[int, typer.Option(help="Which tenth is measured again.", min=0)] = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Check the files of a run, rank it anew, and measure a random tenth of its techniques again on this machine.

    Exits with 3 where a file was changed, or a number does not come out again.
    """
    from gate.cli.progress import reporting
    from gate.screening.verify import verify as check

    with reporting(quiet=quiet) as (progress, log):
        lines = check(run, seed=seed, progress=progress, log=log)
    for line in lines:
        typer.echo(line)
