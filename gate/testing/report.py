"""What a check of a plug-in says: invariants, whether they hold, and what was seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from gate.errors import PluginError

T = TypeVar("T")
Check = Callable[[], str]  # returns what was seen; raises Broken where the invariant does not hold


class Finding(NamedTuple):
    """One invariant, whether it holds, and what was seen."""

    invariant: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """What a check found, in order. subject: the plug-in's name."""

    subject: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if not f.ok)

    @property
    def ok(self) -> bool:
        return not self.failures

    def raise_for_failures(self) -> None:
        """Raise PluginError that names every broken invariant, where there is one."""
        if not self.ok:
            broken = "; ".join(f"{f.invariant}: {f.detail}" for f in self.failures)
            raise PluginError(f"{self.subject} breaks its contract: {broken}")

    def __str__(self) -> str:
        return "\n".join(f"{'ok  ' if f.ok else 'FAIL'}  {f.invariant}: {f.detail}" for f in self.findings)


class Broken(Exception):
    """An invariant does not hold; the text says how."""


def examined(
    name: str,
    plugin: T | type[T] | str,
    by_name: Callable[[str], T],
    checks: Callable[[T], Sequence[tuple[str, Check]]],
) -> CheckReport:
    """Make the plug-in where it is a name or a class, and put it through its checks; failing that is a finding."""
    try:
        made = (
            by_name(plugin) if isinstance(plugin, str) else plugin() if isinstance(plugin, type) else plugin
        )
    except (Exception, SystemExit) as error:  # a stranger's constructor may raise anything: that is checked
        return CheckReport(name, (Finding("can be made", False, _said(error)),))
    return CheckReport(name, tuple(_find(invariant, check) for invariant, check in checks(made)))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _find(invariant: str, check: Check) -> Finding:
    try:
        return Finding(invariant, True, check())
    except Broken as error:
        return Finding(invariant, False, str(error))
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything: that is what is checked
        return Finding(invariant, False, _said(error))
