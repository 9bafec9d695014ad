"""`gate check NAME|path.py::Class`: does a technique, a metric or a probe keep its contract?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gate.cli.apart import apart
from gate.cli.output import DebugOption, Format, FormatOption, echo_rows

if TYPE_CHECKING:
    from gate.testing import CheckReport


def check(
    plugin: Annotated[
        str,
        typer.Argument(
            metavar="NAME|PATH.py::CLASS", help="A technique, metric or probe by name, or a class in a file."
        ),
    ],
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Test a technique, metric or probe against its contract; exit with 3 where it breaks it."""
    from gate.errors import ConfigurationError, PluginError

    def ended(fate: str) -> PluginError:
        return PluginError(f"{plugin} {fate} while it was checked, so nothing is known of it.")

    def work() -> dict[str, Any]:
        report = _report(plugin)
        return {"subject": str(report.subject), "findings": report.findings}

    found = apart(work, ended, debug=debug)
    rows = [dict(zip(("name", "ok", "detail"), finding, strict=True)) for finding in found["findings"]]
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "invariant": lambda r: r["name"],
        "result": lambda r: "ok" if r["ok"] else "FAILED",
        "detail": lambda r: r["detail"],
    }
    echo_rows(rows, columns, format)
    if broken := "; ".join(r["name"] for r in rows if not r["ok"]):
        raise ConfigurationError(f"{found['subject']} breaks the contract: {broken}.")


def _report(name: str) -> CheckReport:
    from gate import testing
    from gate.metric import Metric
    from gate.plugins import find_claim
    from gate.probe import Probe
    from gate.registry import create_technique

    subject: Any = name
    if "::" in name.partition("[")[0]:
        subject = testing.load_class(name)
    elif find_claim("metric", name):
        return testing.check_metric(name)
    elif find_claim("probe", name):
        return testing.check_probe(name)
    else:
        subject = create_technique(name)
    if isinstance(subject, type) and issubclass(subject, Metric):
        return testing.check_metric(subject)
    if isinstance(subject, type) and issubclass(subject, Probe):
        return testing.check_probe(subject)
    return testing.check_technique(subject)
