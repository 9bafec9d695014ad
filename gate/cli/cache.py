"""`gate cache info|clear`: what the latent cache holds, and away with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gate.cli.output import DebugOption, Format, FormatOption, echo_rows

if TYPE_CHECKING:
    from gate.extraction.cache_folder import Group


class Action(str, Enum):
    """What is done with the cache."""

    info = "info"
    clear = "clear"


def cache(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    folder: Annotated[
        Path | None,
        typer.Option(
            help="The cache, where it is not the usual one (GATE_CACHE moves that).",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what `clear` would delete, and delete nothing.")
    ] = False,
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Look at the cache of latents that extractions share, or empty it.

    What is deleted is encoded again when it is needed: slower, and to the same bits.
    """
    from gate.errors import ConfigurationError, UsageError
    from gate.extraction.cache_folder import clear, default_folder, groups

    where = folder if folder is not None else default_folder()
    if where.exists() and not where.is_dir():
        raise UsageError(f"{str(where)!r} is a file; the latent cache is a directory.")
    if action is Action.info and dry_run:
        raise UsageError("--dry-run belongs to clear; info deletes nothing.")
    if action is Action.info:
        found, done = groups(where), "hold"
    else:
        try:
            found, done = clear(where, dry_run=dry_run), "would be deleted" if dry_run else "deleted"
        except OSError as error:
            raise ConfigurationError(
                f"{where} cannot be emptied ({error.strerror}); check its rights."
            ) from error
    if found or format is not Format.table:
        echo_rows([_row(group) for group in found], _COLUMNS, format)
    if format is Format.table:
        typer.echo(_summary(where, found, done))


def _row(group: Group) -> dict[str, Any]:
    return {
        "group": group.name,
        "latents": group.latents,
        "bytes": group.bytes,
        "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(group.used)) if group.used else "",
        "about": group.about,
    }


def _about(row: Mapping[str, Any]) -> str:
    """What tells a group from another, for a person."""
    known = row["about"]
    facts = [known.get(name, "") for name in ("dtype", "device", "processor")]
    size, threads = known.get("image_size"), known.get("threads")
    facts += [f"{size} px"] if size else []
    facts += [f"{threads} threads"] if threads and known.get("device") == "cpu" else []
    return ", ".join(filter(None, facts))


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "backbone": lambda r: r["about"].get("backbone", "?"),
    "latents": lambda r: f"{r['latents']:,}",
    "size": lambda r: _size(r["bytes"]),
    "last used": lambda r: r["used"],
    "encoded as": _about,
}


def _summary(where: Path, found: list[Group], done: str) -> str:
    from gate.names import harmless

    place = harmless(str(where))
    if not found:
        return f"The latent cache is empty: {place}"
    latents, size = sum(g.latents for g in found), _size(sum(g.bytes for g in found))
    if done == "hold":
        return f"{latents:,} latents, {size}, in {place}"
    return f"{latents:,} latents {done}, {size}, from {place}"


def _size(count: int) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    value, units = float(count), ["bytes", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.3g} {units[0]}"
