"""`gate check NAME|path.py::Class`: does a technique keep the contract?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """Test a technique against the contract on the embedded backbone; exit with 3 where it breaks it."""
    from gate.errors import ConfigurationError
    from gate.registry import create_technique, load_class

    subject = load_class(technique) if "::" in technique.partition("[")[0] else create_technique(technique)
    from gate.testing import check_technique

    report = check_technique(subject)
    rows = [{"name": f.invariant, "ok": f.ok, "detail": f.detail} for f in report.findings]
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "invariant": lambda r: r["name"],
        "result": lambda r: "ok" if r["ok"] else "FAILED",
        "detail": lambda r: r["detail"],
    }
    echo_rows(rows, columns, format)
    if not report.ok:
        broken = "; ".join(f.invariant for f in report.failures)
        raise ConfigurationError(f"{report.technique} breaks the contract: {broken}.")
