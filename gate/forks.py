"""A process of its own for one piece of work: it inherits what is loaded, works, sends what came of it, and dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from gate.machine import lean_fork

T = TypeVar("T")

# what takes long to import: loaded once in the parent when a fork had to, for the forks to come
LIBRARIES = frozenset({"diffusers", "peft", "sklearn", "scipy", "transformers"})
GRACE_SECONDS = 0.5


class Rows:
    """Rows that are done, added up over all forks. tick() tells those since it was called last."""

    def __init__(self) -> None:
        self.total, self.told = multiprocessing.get_context("fork").Value("q", 0), 0

    def add(self, rows: int) -> None:
        with self.total.get_lock():
            self.total.value += rows

    def tick(self, tell: Callable[[str, int], None]) -> None:
        new = self.total.value
        tell("", new - self.told)
        self.told = new


class Fork(Generic[T]):
    """A process for one piece of work. work() gives its result; threads: of torch in it.

    `limit`: seconds after which it is over, whatever it does; `waits`: what becomes ready when there is a result, or
    when there will be none.
    """

    def __init__(self, name: str, work: Callable[[], T], threads: int) -> None:
        for stream in (sys.stdout, sys.stderr):  # what waits in their buffers is not the child's to print
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        context: Any = multiprocessing.get_context("fork")
        self.name, self.started, self.late = name, time.monotonic(), 0.0
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work_and_die, args=(work, threads, sender), daemon=True)
        with lean_fork():
            self.process.start()
        sender.close()  # so that the pipe ends with the child

    @property
    def waits(self) -> tuple[Any, Any]:
        return self.receiver, self.process.sentinel

    def is_over(self, ready: Sequence[Any], limit: float) -> bool:
        """Whether there is a result, or will be none."""
        if any(waited in ready for waited in self.waits):
            return True
        self.late = limit if time.monotonic() - self.started > limit else 0.0
        return bool(self.late)

    def result(self) -> tuple[T | None, list[str]]:
        """What it sent, and the libraries that it had to load; None where it sent nothing (`fate` says why)."""
        try:
            if not self.late and self.receiver.poll():
                # written by our own child, into a pipe that nobody else holds
                found: tuple[T, list[str]] = pickle.loads(self.receiver.recv_bytes())
                return found
        except (EOFError, OSError, pickle.UnpicklingError):  # it died before, or while, it sent
            pass
        finally:
            self.end()
        return None, []

    def fate(self) -> str:
        """What became of a process that sent nothing."""
        if self.late:
            return f"it was stopped after {self.late:.0f} s (--technique-timeout)"
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"it ended its process with exit code {code} and gave no result"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = ", as happens where memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"

    def end(self) -> None:
        """No process is left behind, whatever it does with signals."""
        self.process.join(0 if self.late else GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.receiver.close()


def _work_and_die(work: Callable[[], Any], threads: int, sender: Any) -> None:
    """In the child. It ends without the parent's exit handlers, and without waiting for threads that it left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the forks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)  # stdout is the table's, for libraries that write to it as for Python
    sys.stdout = sys.stderr
    known = set(sys.modules)

    def send() -> None:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            found = work()
        new = [m for m in sys.modules if m not in known and m.partition(".")[0] in LIBRARIES]
        sender.send_bytes(pickle.dumps((found, new)))
        sender.close()

    if threads == 1:
        send()
    else:  # the parent's team of OpenMP threads did not come along, and its master would wait for it for ever
        fresh = threading.Thread(target=send)
        fresh.start()
        fresh.join()
    os._exit(0)
