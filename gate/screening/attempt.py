"""One technique, tried: its numbers, or why there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gate.errors import GateError, MissingWeightsError, UnsuitableError
from gate.machine import halving
from gate.registry import create_technique
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.intact import Intact
    from gate.screening.bench import Bench
    from gate.screening.measured import Measured

VANILLA = "vanilla"
MAX_NAMED = 3


@dataclass(frozen=True)
class Attempt:
    """What came of one technique. failed: by an error, not by what it needs. notices: lines for the user.

    spoils: whether it left something changed in a process that others are measured in. unfetched: whether what it needs
    is weights. full: the number of the system's error where the run's disk took no more, which ends the screening.
    """

    name: str
    measured: Measured | None = None
    reason: str = ""
    fix: str = ""
    failed: bool = False
    notices: tuple[str, ...] = ()
    spoils: bool = False
    unfetched: bool = False
    full: int = 0


def failure(name: str, reason: str, notices: tuple[str, ...] = (), *, spoils: bool = False) -> Attempt:
    """A technique that broke, rather than did not fit."""
    return Attempt(name, None, reason, f"Run: gate check '{name}'", True, notices, spoils)


def attempt(bench: Bench, name: str, tick: Callable[[int], None], intact: Intact, *, alone: bool) -> Attempt:
    """Measure one technique; whatever it raises becomes part of the result, and so does what it left changed.

    alone: in a process of its own, where an interruption is the technique's and not the user's.
    """
    from gate.screening.measure import ours
    from gate.screening.shelf import NoRoomError

    notices: list[str] = []
    try:
        technique = Technique() if name == VANILLA else create_technique(name)
        technique.check(bench.backbone, technique.visible(bench.samples))
        bench.memo.keeping = ours(technique)
        found = Attempt(name, _within_memory(bench, technique, tick, notices.append), notices=tuple(notices))
    except NoRoomError as error:
        found = Attempt(name, reason=str(error), full=error.errno or 0)
    except UnsuitableError as error:
        unfetched = isinstance(error.__cause__, MissingWeightsError)
        found = Attempt(name, None, error.reason, error.fix, unfetched=unfetched)
    except KeyboardInterrupt:
        if not alone:
            raise
        found = failure(name, "KeyboardInterrupt", tuple(notices))
    except BaseException as error:  # a stranger's may even call sys.exit: told, and the others go on
        reason = str(error) if isinstance(error, GateError) else f"{type(error).__name__}: {error}"
        found = failure(name, reason, tuple(notices))
    changed = _changes(intact)
    if not changed:
        return found
    shown = ", ".join(changed[:MAX_NAMED]) + (
        f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
    )
    reason = f"it changed for good what all techniques share: {shown}"
    reason = f"{found.reason}; {reason}" if found.failed else reason
    return failure(name, reason, found.notices, spoils=not alone)


def _changes(intact: Intact) -> list[str]:
    try:
        return intact.changes()
    except Exception as error:  # what looks is changed as well
        return [f"what torch or numpy do ({type(error).__name__}: {error})"]


def expected_calls(name: str) -> float:
    """Denoiser calls that a technique declares; 0 where it cannot say."""
    try:
        return 0.0 if name == VANILLA else create_technique(name).cost.total
    except BaseException:  # a stranger's constructor or cost; `attempt` meets it again and tells it
        return 0.0


def _within_memory(
    bench: Bench, technique: Technique, tick: Callable[[int], None], log: Callable[[str], None]
) -> Measured:
    """Measure; where memory runs out, halve the batch and try again. Raises OutOfMemoryError at batch size 1."""
    from gate.screening import measure

    return halving(
        lambda size: measure.measure(bench, technique, tick, batch_size=size),
        bench.batch_size,
        technique.name,
        "use --dtype float16 or a smaller backbone",
        log=log,
    )
