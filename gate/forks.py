"""A process of its own for a piece of work: it inherits what is loaded, works, and sends what came of it.

Then it dies, or is given the next piece.
"""

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
ORPHAN_SECONDS = 2.0  # how often a fork without work looks whether its parent lives


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
    """A process for pieces of work. work(name) gives the result of one; threads: of torch in it.

    `limit`: seconds after which a piece is over, whatever it does; `waits`: what becomes ready when there is a result,
    or when there will be none; `pieces`: that it was given.
    """

    def __init__(self, name: str, work: Callable[[str], T], threads: int) -> None:
        for stream in (sys.stdout, sys.stderr):  # what waits in their buffers is not the child's to print
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        context: Any = multiprocessing.get_context("fork")
        self.name, self.started, self.late, self.pieces, self.sent = name, time.monotonic(), 0.0, 1, False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work_and_die, args=(name, work, threads, theirs), daemon=True)
        with lean_fork():
            self.process.start()
        theirs.close()  # so that the pipe ends with the child

    def then(self, name: str) -> None:
        """Give it the next piece, after the result of the one before."""
        self.name, self.started, self.pieces, self.sent = name, time.monotonic(), self.pieces + 1, False
        with contextlib.suppress(OSError):  # it died meanwhile, as `waits` will tell
            self.pipe.send_bytes(name.encode())

    @property
    def waits(self) -> tuple[Any, Any]:
        return self.pipe, self.process.sentinel

    def is_over(self, ready: Sequence[Any], limit: float) -> bool:
        """Whether there is a result, or will be none."""
        if any(waited in ready for waited in self.waits):
            return True
        self.late = limit if time.monotonic() - self.started > limit else 0.0
        return bool(self.late)

    def result(self) -> tuple[T | None, list[str]]:
        """What it sent, and the libraries that it had to load; None where it sent nothing, which ends it (`fate`)."""
        try:
            if not self.late and self.pipe.poll():
                # written by our own child, into a pipe that nobody else holds
                found: tuple[T, list[str]] = pickle.loads(self.pipe.recv_bytes())
                self.sent = True
                return found
        except (EOFError, OSError, pickle.UnpicklingError):  # it died before, or while, it sent
            pass
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
        self.process.join(0 if self.late or self.sent else GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _work_and_die(name: str, work: Callable[[str], Any], threads: int, pipe: Any) -> None:
    """In the child. It ends without the parent's exit handlers, and without waiting for threads that it left."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the forks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)  # stdout is the table's, for libraries that write to it as for Python
    sys.stdout = sys.stderr
    known = set(sys.modules)

    def serve(name: str) -> None:
        import torch
        from threadpoolctl import threadpool_limits

        while True:
            torch.set_num_threads(threads)
            with threadpool_limits(threads):
                found = work(name)
            new = [m for m in sys.modules if m not in known and m.partition(".")[0] in LIBRARIES]
            known.update(new)
            pipe.send_bytes(pickle.dumps((found, new)))
            # the end of the pipe tells nothing: forks made later hold the parent's side of it as well
            while not pipe.poll(ORPHAN_SECONDS):
                if os.getppid() != parent:
                    return
            name = pipe.recv_bytes().decode()

    if threads == 1:
        serve(name)
    else:  # the parent's team of OpenMP threads did not come along, and its master would wait for it for ever
        fresh = threading.Thread(target=serve, args=(name,))
        fresh.start()
        fresh.join()
    os._exit(0)
