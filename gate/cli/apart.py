"""Work in a process of its own: whatever a plug-in does to the process, the one who asked is told."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import typer

from gate.cli.failures import explain


def apart(work: Callable[[], Any], ended: Callable[[str], Exception], *, debug: bool) -> Any:
    """What `work` returns, as JSON has it, from a fork; where the machine cannot fork, from here.

    Raises what `ended` makes of the fate of a process that gave no answer. An exception ends the command as it would
    have here: its sentence, its exit code.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return work()
    context: Any = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # what waits there is not the child's to print
    process = context.Process(target=_do, args=(work, sender, debug))
    process.start()
    sender.close()  # so that the pipe ends with the child
    try:
        wait([receiver, process.sentinel])
        answer = json.loads(receiver.recv_bytes()) if receiver.poll() else None
        process.join(1)
    except (EOFError, OSError, ValueError):  # it died while it said it
        answer = None
        process.join(1)
    finally:
        process.kill()  # one that does not end, because of a signal that it ignores or an interruption here
        process.join()
    if answer is None:
        raise ended(_fate(process.exitcode))
    if "code" in answer:
        typer.echo(answer["said"], err=True)
        raise typer.Exit(answer["code"])
    return answer["found"]


def _do(work: Callable[[], Any], sender: Any, debug: bool) -> None:
    """In the fork. It ends without the parent's exit handlers, and without waiting for threads that it left."""
    os.dup2(2, 1)  # stdout is the table's
    sys.stdout = sys.stderr
    if "torch" in sys.modules:  # threads that the parent had are not there, and OpenMP would wait for them
        sys.modules["torch"].set_num_threads(1)
    try:
        answer = {"found": work()}
    except BaseException as error:
        if debug:
            traceback.print_exc(file=sys.stderr)
        said, code = explain(error)
        answer = {"said": said, "code": code}
    sender.send_bytes(json.dumps(answer).encode())
    sender.close()
    sys.stderr.flush()
    os._exit(0)


def _fate(code: int | None) -> str:
    """What became of a process, in words."""
    if code is None or code >= 0:
        return f"ended the process (exit code {code})"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
