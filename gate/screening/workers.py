"""Measuring many techniques: each in a fork of its own, as many at a time as there are cores; or one after another.

On a small backbone a forward pass is hundreds of small operations: two processes of one thread finish sooner than one
process of two threads. A fork inherits the bench, so what is shared is computed once; it measures one technique, sends
its numbers and dies, so whatever the technique did to weights, tensors, torch or the process itself ends with it.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gate.errors import GateError, OutOfMemoryError, UnsuitableError
from gate.machine import forkable_cores
from gate.registry import create_technique
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.screening.bench import Bench
    from gate.screening.measured import Measured

VANILLA = "vanilla"
SMALL_IMAGE = 128  # px; larger backbones fill the cores, and the memory, alone
POLL_SECONDS = 0.2
LEAST_SECONDS, TIMES_VANILLA = (
    600.0,
    20.0,
)  # a technique's time: twenty times what its declared calls take, ten minutes
# libraries with threads of their own, there before the forks limit them: one that comes later starts as many as it
# likes, and two forks then hinder each other
THREADED = ("scipy.linalg", "sklearn.neighbors")
# what the end of a screening needs: a second and a half of imports on one core, done while the forks measure
AFTERWARDS = ("gate.screening.results", "gate.report.figures.ranking", "gate.report.figures.reconstructions")


LIBRARIES = frozenset(
    {"diffusers", "peft", "sklearn", "scipy", "transformers"}
)  # loaded once, for the forks to come


@dataclass(frozen=True)
class Attempt:
    """What came of one technique. failed: by an error, not by what it needs. notices: lines for the user."""

    name: str
    measured: Measured | None = None
    reason: str = ""
    fix: str = ""
    failed: bool = False
    notices: tuple[str, ...] = ()


def choose_workers(bench: Bench, techniques: int) -> int:
    """As configured; `auto` is one per core for small backbones on a CPU that can fork, else 1."""
    if bench.config.workers != "auto":
        return min(bench.config.workers, techniques)
    small = bench.backbone.image_size <= SMALL_IMAGE and bench.backbone.device.type == "cpu"
    return max(1, min(forkable_cores(), techniques)) if small else 1


def attempts(
    bench: Bench, names: Sequence[str], workers: int, tick: Callable[[str, int], None]
) -> Iterator[Attempt]:
    """One Attempt per name as they finish. tick(name, rows) is called as passes finish; with forks, name is ""."""
    if workers > 1:
        yield from _forked(bench, names, workers, tick)
        return
    for name in names:
        yield attempt(bench, name, lambda rows, n=name: tick(n, rows))  # type: ignore[misc]


def _forked(
    bench: Bench, names: Sequence[str], workers: int, tick: Callable[[str, int], None]
) -> Iterator[Attempt]:
    for module in THREADED if bench.probes else ():
        importlib.import_module(module)
    context: Any = multiprocessing.get_context("fork")
    counter, seen = context.Value("q", 0), 0
    waiting = sorted(names, key=lambda name: -_expected_calls(name))  # the longest first
    running: list[_Fork] = []
    afterwards = list(AFTERWARDS)
    vanilla_seconds = 0.0
    with _shared_memo(bench):
        try:
            if VANILLA in waiting:
                waiting.remove(VANILLA)
                if (
                    waiting
                ):  # the longest begins at once, and the other core makes what all the others will need
                    running.append(_Fork(context, bench, waiting.pop(0), counter))
                began = time.monotonic()
                yield _in_the_parent(bench, counter)
                vanilla_seconds = time.monotonic() - began
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(_Fork(context, bench, waiting.pop(0), counter))
                if afterwards:
                    importlib.import_module(afterwards.pop(0))
                ready = multiprocessing.connection.wait(
                    [w for fork in running for w in fork.waits], 0 if afterwards else POLL_SECONDS
                )
                tick("", counter.value - seen)
                seen = counter.value
                for fork in [
                    f for f in running if f.is_over(ready, vanilla_seconds, bench.config.technique_timeout)
                ]:
                    running.remove(fork)
                    found, modules = fork.result()
                    afterwards += [m for m in modules if m not in sys.modules]
                    yield found
        finally:
            for fork in running:
                fork.end()


def _in_the_parent(bench: Bench, counter: Any) -> Attempt:
    """The plain backbone, on one thread: what its passes compile and load, every later fork finds done."""
    import torch
    from threadpoolctl import threadpool_limits

    def tick(rows: int) -> None:
        with counter.get_lock():
            counter.value += rows

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return attempt(bench, VANILLA, tick)
    finally:
        torch.set_num_threads(threads)


class _Fork:
    """A process that measures one technique."""

    def __init__(self, context: Any, bench: Bench, name: str, counter: Any) -> None:
        for stream in (sys.stdout, sys.stderr):  # what waits in their buffers is not the child's to print
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        self.name, self.started, self.late = name, time.monotonic(), 0.0
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_measure_and_die, args=(bench, name, counter, sender), daemon=True
        )
        self.process.start()
        sender.close()  # so that the pipe ends with the child

    @property
    def waits(self) -> tuple[Any, Any]:
        """What becomes ready when there is a result, or when there will be none."""
        return self.receiver, self.process.sentinel

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.started

    def is_over(self, ready: Sequence[Any], vanilla_seconds: float, timeout: float | None) -> bool:
        """Whether there is a result, or will be none. timeout: None is twenty times what its calls should take."""
        if any(waited in ready for waited in self.waits):
            return True
        limit = timeout or (
            max(LEAST_SECONDS, TIMES_VANILLA * vanilla_seconds * max(1.0, _expected_calls(self.name)))
            if vanilla_seconds
            else float("inf")
        )
        self.late = limit if self.seconds > limit else 0.0
        return bool(self.late)

    def result(self) -> tuple[Attempt, list[str]]:
        """What it sent, and which modules it had to load; else what became of it."""
        try:
            if not self.late and self.receiver.poll():
                found: tuple[Attempt, list[str]] = pickle.loads(self.receiver.recv_bytes())
                return found
        except (EOFError, OSError, pickle.UnpicklingError):  # it died before, or while, it sent
            pass
        finally:
            self.end()
        return Attempt(self.name, None, self._fate(), f"Run: gate check '{self.name}'", True), []

    def _fate(self) -> str:
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
        self.process.join(0.5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.receiver.close()


@contextlib.contextmanager
def _shared_memo(bench: Bench) -> Iterator[None]:
    """Answers lie in a folder while several processes measure."""
    with tempfile.TemporaryDirectory(dir=bench.scratch, prefix="memo-") as folder:
        bench.memo.folder = Path(folder)
        try:
            yield
        finally:
            bench.memo.folder = None


def attempt(bench: Bench, name: str, tick: Callable[[int], None]) -> Attempt:
    """Measure one technique; an error other than an interruption becomes part of the result."""
    notices: list[str] = []
    try:
        technique = Technique() if name == VANILLA else create_technique(name)
        technique.check(bench.backbone, bench.samples)
        return Attempt(name, _within_memory(bench, technique, tick, notices.append), notices=tuple(notices))
    except UnsuitableError as error:
        return Attempt(name, None, error.reason, error.fix)
    except Exception as error:  # a technique may be a stranger's: record it, tell it, go on
        reason = str(error) if isinstance(error, GateError) else f"{type(error).__name__}: {error}"
        return Attempt(name, None, reason, f"Run: gate check '{name}'", True, tuple(notices))


def _expected_calls(name: str) -> float:
    try:
        return 0.0 if name == VANILLA else create_technique(name).cost.total
    except Exception:  # a stranger's constructor or cost; `attempt` meets it again and tells it
        return 0.0


def _within_memory(
    bench: Bench, technique: Technique, tick: Callable[[int], None], log: Callable[[str], None]
) -> Measured:
    """Measure; where memory runs out, halve the batch and try again. Raises OutOfMemoryError at batch size 1."""
    import torch

    from gate.screening import measure

    size = bench.batch_size
    while True:
        try:
            return measure.measure(bench, technique, tick, batch_size=size)
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise OutOfMemoryError(
                    f"{technique.name} does not fit into memory even at batch size 1; use --dtype float16 or a "
                    "smaller backbone."
                ) from error
            size //= 2
            log(f"out of memory in {technique.name}: going on with batches of {size}")


def _measure_and_die(bench: Bench, name: str, counter: Any, sender: Any) -> None:
    """In the fork. It ends without the parent's exit handlers, and without waiting for threads that it left."""
    import torch
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the forks
    os.dup2(2, 1)  # stdout is the table's, for libraries that write to it as for Python
    sys.stdout = sys.stderr
    torch.set_num_threads(1)

    def tick(rows: int) -> None:
        with counter.get_lock():
            counter.value += rows

    known = set(sys.modules)
    with threadpool_limits(1):
        try:
            found = attempt(bench, name, tick)
        except BaseException as error:  # SystemExit, or a stranger's own
            found = Attempt(name, None, f"{type(error).__name__}: {error}", f"Run: gate check '{name}'", True)
        new = [m for m in sys.modules if m not in known and m.partition(".")[0] in LIBRARIES]
        sender.send_bytes(pickle.dumps((found, new)))
    sender.close()
    os._exit(0)
