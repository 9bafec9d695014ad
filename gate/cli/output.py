"""What all subcommands print alike: formats, tables, JSON without NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any

import typer

from gate.names import HOSTILE, harmless


class Format(str, Enum):
    """How a table is printed on stdout."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices on stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


def flag(help: str, default: str, metavar: str) -> Any:
    """An option that is None unless given. A test holds the defaults that `gate screen` shows to ScreenConfig's."""
    shown = f"{help} [default: {default}]" if default else help
    return typer.Option(help=shown, show_default=False, metavar=metavar)


def to_json(value: Any) -> str:
    """JSON text; NaN and infinity become null, sets become sorted lists, the rest of the world its text.

    What a terminal would obey is escaped, so that it reads back as it was.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    return "\n".join(HOSTILE.sub(lambda c: f"\\u{ord(c[0]):04x}", line) for line in text.split("\n"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return [_plain(v) for v in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def terminal() -> Any:
    """A console on stdout: colours and width of the terminal; 80 columns where there is none."""
    import os
    import sys

    from rich.console import Console

    class Raising(Console):
        """Rich's own leaves the program where a pipe is closed."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 80
    return Raising(width=width, highlight=False, soft_wrap=False)


def echo_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Callable[[Mapping[str, Any]], str]],
    format: Format,
) -> None:
    """Print objects: whole as JSON, else the named columns. The last column takes what width is left."""
    if format is Format.json:
        typer.echo(to_json(list(rows)))
        return
    cells = [[harmless(cell(row)) for cell in columns.values()] for row in rows]
    if format is Format.csv:
        from gate.report.table import comma_separated

        typer.echo(comma_separated(list(columns), cells))
    elif format is Format.md:
        from gate.report.table import markdown

        typer.echo(markdown(list(columns), cells))
    else:
        _print_table(list(columns), cells)


def _print_table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*(Text(c) for c in row))
    terminal().print(table)
