"""Every failure is one sentence on stderr and the right exit code; a traceback only with --debug."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from gate.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    FULL,
    ConfigurationError,
    GateError,
    OutOfMemoryError,
    PluginError,
    UsageError,
)
from gate.names import harmless

Command = TypeVar("Command", bound=Callable[..., Any])
EXIT_BUG = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same as Ctrl-C but for the code."""


def guarded(command: Command) -> Command:
    """The command with its exceptions turned into exit codes; its keyword `debug` shows the traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError as error:  # `| head` has read enough; what was made lies on the disk
            hush(sys.stdout)
            raise typer.Exit(0) from error
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if kwargs.get("debug"):
                traceback.print_exc(file=sys.stderr)
            message, code = explain(error)
            say(message)
            raise typer.Exit(code) from error

    return run  # type: ignore[return-value]


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code of an exception."""
    if isinstance(error, KeyboardInterrupt):
        finish = getattr(error, "told", "")
        if getattr(error, "folder", None) is not None:
            finish = "go on with the same command and --resume"
        ended = any(isinstance(e, Terminated) for e in (error, error.__cause__))
        message = f"{'Terminated' if ended else 'Interrupted'}{'; ' if finish else ''}{finish}"
        return harmless(message), EXIT_TERMINATED if ended else EXIT_INTERRUPTED
    text = harmless(" ".join(str(error).split()))
    if isinstance(error, SystemExit):  # none of ours raises it: the command line raises typer.Exit
        return (
            f"gate: a plug-in ended the command (SystemExit: {text}); gate doctor lists them",
            PluginError.exit_code,
        )
    if isinstance(error, GateError):
        return f"gate: {text}", error.exit_code
    if isinstance(error, OSError) and error.errno in FULL:
        hush(sys.stdout)
        where = f"{error.filename}: " if error.filename else ""
        reason = f"{where}{error.strerror}; make room there, or choose another place."
        return f"gate: cannot write: {harmless(reason)}", ConfigurationError.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (
            f"gate: {harmless(str(error.filename)[:40])}... is too long a path; give a shorter one.",
            UsageError.exit_code,
        )
    if ran_out(error):
        return (
            "gate: memory ran out; use a smaller --image-size or --batch-size, --dtype float16, or a smaller backbone.",
            OutOfMemoryError.exit_code,
        )
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"gate: unexpected {what} (this is a bug; --debug shows where)", EXIT_BUG


def ran_out(error: BaseException) -> bool:
    """Whether memory did, in a place that has no batch to halve; no torch is imported to find out."""
    if not isinstance(error, Exception) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from gate.machine import is_out_of_memory

    return is_out_of_memory(error)


def say(message: str) -> None:
    """A line on stderr; where even that cannot be written, the exit code says it alone."""
    try:
        typer.echo(message, err=True)
    except OSError:
        hush(sys.stderr)


def hush(stream: Any) -> None:
    """Send what a stream still holds nowhere: it cannot be written, and Python would try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def end_as_interrupted() -> None:
    """From here on SIGTERM ends this process as Ctrl-C does; its forks die of it, as ever."""

    def stop(*_: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
