"""`gate check NAME|path.py::Class`: does a technique keep the contract?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gate.cli.output import DebugOption, Format, FormatOption, echo_rows


def check(
    technique: Annotated[
        str, typer.Argument(metavar="NAME|PATH.py::CLASS", help="A technique by name, or a class in a file.")
    ],
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Test every invariant of the technique contract on a small backbone. Exits with 3 where one is broken."""
    from gate.errors import ConfigurationError
    from gate.registry import create_technique, load_class
    from gate.technique import with_settings

    subject: Any = create_technique(technique) if "::" not in technique else None
    if subject is None:
        cls = load_class(technique)
        subject = with_settings(cls, cls.name or cls.__name__, {})
    from gate.testing import check_technique

    report = check_technique(subject)
    rows = [{"name": c.name, "ok": bool(c.ok), "detail": c.detail} for c in report.checks]
    columns = {
        "invariant": lambda r: r["name"],
        "result": lambda r: "ok" if r["ok"] else "FAILED",
        "detail": lambda r: r["detail"],
    }
    echo_rows(rows, columns, format)
    broken = [r["name"] for r in rows if not r["ok"]]
    if broken:
        raise ConfigurationError(f"{subject.name} breaks the contract: {', '.join(broken)}.")
