"""One exception tree; each class carries its exit code, each message says what to do next."""

from __future__ import annotations

import difflib
import errno
import reprlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class GateError(Exception):
    """An expected failure. Its text is one sentence for the user; `exit_code` is the command's exit code."""

    exit_code = 1


class UsageError(GateError):
    """An argument is wrong: an unknown name, an impossible value, an output directory that exists."""

    exit_code = 2


class ConfigurationError(GateError):
    """The data, the backbone or a plug-in cannot do what is asked."""

    exit_code = 3


class PluginError(ConfigurationError):
    """A technique, probe or metric could not be imported, or breaks its contract."""


class NonFiniteError(ConfigurationError):
    """A feature or prediction holds NaN or infinity. The message names the layer."""


class DamagedError(ConfigurationError):
    """A file of a run is not what gate wrote: cut, overwritten, exchanged or edited."""


class IncomparableError(GateError):
    """Two runs, or two sets of numbers, cannot be compared."""

    exit_code = 4


class _Remedied(GateError):
    """A reason, and what the user can do about it, apart. fix: a sentence or a command."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason if not fix else f"{reason} {fix}")
        self.reason = reason
        self.fix = fix


class MissingWeightsError(_Remedied):
    """Weights are not on this machine. The message names the command that fetches them."""

    exit_code = 5


class OutOfMemoryError(GateError):
    """Memory ran out even at batch size 1."""

    exit_code = 6


class UnsuitableError(_Remedied):
    """A technique cannot serve this backbone or these samples; it is skipped and the others go on."""

    exit_code = 7


# of an OSError, where a disk or a stream takes no more: nobody's bug
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
EXIT_PARTIAL = 7
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


def unknown_name(kind: str, name: str, known: Iterable[str], *, listing: str) -> UsageError:
    """The error for a name that matches nothing. listing: the command that lists the names."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.55)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} See: {listing}")


def known_settings(values: Mapping[str, Any], known: Iterable[str], *, listing: str) -> dict[str, Any]:
    """The same values. Raises UsageError for the first whose name is not known."""
    for key in values:
        if key not in set(known):
            raise unknown_name("setting", key, known, listing=listing)
    return dict(values)


def wrong_setting(error: ValidationError, *, listing: str) -> UsageError:
    """The first thing that pydantic found wrong with settings, as a sentence."""
    first = error.errors()[0]
    said = str(first["msg"]).removeprefix("Value error, ")
    if not first["loc"]:
        return UsageError(f"The settings contradict each other: {said}. See: {listing}")
    got = "" if first["type"] == "value_error" else f", got {reprlib.repr(first['input'])}"
    return UsageError(
        f"Setting {first['loc'][0]!r} is wrong: {said[0].lower()}{said[1:]}{got}. See: {listing}"
    )
