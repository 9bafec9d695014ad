"""One exception tree; each class carries its exit code, each message says what to do next."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


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


class MissingWeightsError(GateError):
    """Weights are not on this machine. The message names the command that fetches them."""

    exit_code = 5


class OutOfMemoryError(GateError):
    """Memory ran out even at batch size 1."""

    exit_code = 6


class UnsuitableError(GateError):
    """A technique cannot serve this backbone or these samples; it is skipped and the others go on.

    fix: what the user can do about it, as a sentence or a command.
    """

    exit_code = 7

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason if not fix else f"{reason} {fix}")
        self.reason = reason
        self.fix = fix


# of an OSError, where a disk or a stream takes no more: nobody's bug
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
EXIT_PARTIAL = 7
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


def unknown_name(kind: str, name: str, known: Iterable[str], *, listing: str) -> UsageError:
    """The error for a name that matches nothing. listing: the command that lists the names."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.55)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} See: {listing}")
