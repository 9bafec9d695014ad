"""`gate study`: does the cheap screen foretell what trained heads say?"""

from __future__ import annotations

from typing import Annotated

import typer

from gate.cli.output import DebugOption, QuietOption, flag


def study(
    output: Annotated[
        str,
        typer.Option("--output", metavar="DIR", help="The study's folder; the same command goes on there."),
    ],
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="Processes of one thread each.")
    ] = 2,
    domains: Annotated[str | None, flag("Domains.", "all nine", "LIST")] = None,
    timesteps: Annotated[
        str | None, flag("Timesteps; rules are fitted on the first two.", "300,50,150,500", "LIST")
    ] = None,
    techniques: Annotated[str | None, flag("Techniques, as in gate screen.", "25 of them", "LIST")] = None,
    miniature: Annotated[
        bool, typer.Option("--miniature", help="A study of minutes that says nothing, to try the command.")
    ] = False,
    analyse: Annotated[
        bool, typer.Option("--analyse", help="Compute nothing more: tell what the finished cells say.")
    ] = False,
    page: Annotated[str | None, flag("Where study.md and study/ go.", "the study's folder", "DIR")] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train heads in full for every technique, and see what foretold them.

    It takes hours; killed at any time, it goes on where it was.
    """
    from pathlib import Path

    from gate.cli.progress import reporting
    from gate.errors import UsageError
    from gate.study.folder import conclude, open_study, read_settings, run_study
    from gate.study.page import cells_of
    from gate.study.settings import settings_from

    folder = Path(output).expanduser()
    given = {"domains": domains, "timesteps": timesteps, "techniques": techniques}
    asked = {k: v for k, v in given.items() if v is not None}
    with reporting(quiet=quiet) as (progress, log):
        if analyse:
            if asked or miniature:
                raise UsageError(
                    "--analyse tells of what is there; leave out what chooses the study's cells."
                )
            read_settings(folder)
        else:
            begun = (folder / "settings.json").is_file() and not asked and not miniature
            settings = read_settings(folder) if begun else settings_from(asked, miniature=miniature)
            settings = open_study(folder, settings)
            run_study(folder, settings, workers=workers, progress=progress, log=log)
        log("analysing")
        results = conclude(folder, Path(page).expanduser() if page else folder)
    done, of = cells_of(results)
    cases = results["cases"] + (results["unseen"] or {}).get("cases", 0)
    typer.echo(
        f"{folder}: {done} of {of} cells, {cases} cases. "
        f"Read {(Path(page).expanduser() if page else folder) / 'study.md'}"
    )
