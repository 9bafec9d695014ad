"""`gate rank RUN`: the ranking of a finished run, again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gate.cli.output import DebugOption, Format, FormatOption, terminal, to_json
from gate.names import harmless

if TYPE_CHECKING:
    from gate.runs.schema import Results


MOST = 3  # winners that the printed command extracts with
UNSEALED = "{run} carries no checksums (an older gate made it), so it is read as it stands."


def rank(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Print the ranking of a finished run."""
    from gate.runs.directory import open_run

    opened = open_run(run)
    if not opened.sealed:
        typer.echo(UNSEALED.format(run=harmless(str(run))), err=True)
    print_results(opened.results, opened.path, format)


def print_results(results: Results, path: Path, format: Format) -> None:
    """The ranking on stdout. CSV holds the ranking alone, so what else there is to say goes to stderr."""
    from gate.report import table, words
    from gate.report.shown import shown

    following = extract_command(results, path)
    if format is Format.json:
        typer.echo(
            to_json({**results.model_dump(mode="json"), "run": str(path), "extract": following or None})
        )
        return
    then = f"Extract with the winners: {harmless(following)}" if following else ""
    results, place = shown(results), harmless(str(path))
    if format is Format.csv:
        typer.echo(table.ranking_csv(results))
        for line in (*results.verdict, *words.closing(results), f"Run: {place}", *([then] if then else [])):
            typer.echo(line, err=True)
    elif format is Format.md:
        typer.echo(f"{table.ranking_markdown(results)}\n\nRun: {place}")
    else:
        table.print_ranking(results, terminal())
        typer.echo(f"Run: {place}  (figures: {harmless(str(path / 'figures'))})")
        if then:
            typer.echo(then)


def extract_command(results: Results, path: Path) -> str:
    """What extracts features with the winners of a run, ready to be pasted; "" where there is none."""
    if not results.winners:
        return ""
    top = min(MOST, len(results.winners))
    words = ["gate", "extract", "--from", str(path), *(["--top", str(top)] if top > 1 else [])]
    return shlex.join([*words, "--output", f"{path}-features"])
