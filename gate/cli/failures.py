"""Every failure is one sentence on stderr and the right exit code; a traceback only with --debug."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from gate.errors import EXIT_INTERRUPTED, GateError, UsageError

Command = TypeVar("Command", bound=Callable[..., Any])
EXIT_BUG = 1


def guarded(command: Command) -> Command:
    """The command with its exceptions turned into exit codes; its keyword `debug` shows the traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if kwargs.get("debug"):
                traceback.print_exc(file=sys.stderr)
            message, code = explain(error)
            typer.echo(message, err=True)
            raise typer.Exit(code) from error

    return run  # type: ignore[return-value]


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code of an exception."""
    if isinstance(error, KeyboardInterrupt):
        run = getattr(error, "run", None)
        finish = f"; finish it with: gate resume {run}" if run is not None else ""
        if getattr(error, "folder", None) is not None:
            finish = "; go on with the same command and --resume"
        return f"Interrupted{finish}", EXIT_INTERRUPTED
    text = " ".join(str(error).split())
    if isinstance(error, GateError):
        return f"gate: {text}", error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (
            f"gate: {str(error.filename)[:40]}... is too long a path; give a shorter one.",
            UsageError.exit_code,
        )
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"gate: unexpected {what} (this is a bug; --debug shows where)", EXIT_BUG
