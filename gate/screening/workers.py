"""Measuring many techniques in forks, as many at a time as there are cores; where nothing can be forked, one after
another. What all of them share is compared after each.

On a small backbone a forward pass is hundreds of small operations: two processes of one thread finish sooner than one
process of two threads. A fork inherits the bench, so what is shared is computed once; whatever a technique did to
weights, tensors, torch or the process itself ends with the fork. A stranger's technique has a fork of its own. One of
ours may follow others of ours that went well and left everything as it was: 33 forks more make a screen of `tiny`
9 to 16 % longer (pages that are copied, kernels that are prepared again).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing.connection
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gate.errors import ConfigurationError
from gate.extraction.plan import usual_processes
from gate.forks import Fork, Rows
from gate.machine import can_fork
from gate.plugins import is_ours
from gate.screening.attempt import VANILLA, Attempt, attempt, expected_calls, failure

if TYPE_CHECKING:
    from gate.intact import Intact
    from gate.screening.bench import Bench

POLL_SECONDS = 0.2
# a technique may take twenty times what its declared calls should, and ten minutes at least
TIMES_VANILLA, LEAST_SECONDS = 20.0, 600.0
# libraries with threads of their own, there before the forks limit them: one that comes later starts as many as it
# likes, and two forks then hinder each other
THREADED = ("scipy.linalg", "sklearn.neighbors")
# what the end of a screening needs: a second and a half of imports on one core, done while the forks measure
AFTERWARDS = ("gate.screening.results", "gate.report.figures.ranking", "gate.report.figures.reconstructions")

Tick = Callable[[str, int], None]


def choose_workers(bench: Bench, techniques: int) -> int:
    """As configured; `auto` is one per core for small backbones on a CPU that can fork, else 1."""
    if bench.config.workers != "auto":
        return min(bench.config.workers, techniques)
    return max(1, min(usual_processes(bench.backbone), techniques))


def attempts(bench: Bench, names: Sequence[str], workers: int, tick: Tick) -> Iterator[Attempt]:
    """One Attempt per name as they finish. tick(name, rows) is called as passes finish; with forks, name is "".

    Where nothing can be forked, a technique that left something changed ends the iteration: nothing that is measured
    after it could be trusted.
    """
    from gate.intact import Intact

    intact = Intact(bench.backbone, bench.samples, bench.shared)
    if can_fork() and bench.backbone.device.type == "cpu":
        yield from _forked(bench, names, workers, tick, intact)
    else:
        yield from _one_after_another(bench, names, tick, intact)


def time_limit(bench: Bench, name: str, vanilla_seconds: float) -> float:
    """Seconds that a technique may take. vanilla_seconds: those of the plain backbone, 0 while they are not known."""
    if bench.config.technique_timeout:
        return bench.config.technique_timeout
    expected = vanilla_seconds * max(1.0, expected_calls(name))
    return max(LEAST_SECONDS, TIMES_VANILLA * expected) if vanilla_seconds else float("inf")


def _forked(
    bench: Bench, names: Sequence[str], workers: int, tick: Tick, intact: Intact
) -> Iterator[Attempt]:
    import torch

    for module in THREADED if bench.probes else ():
        importlib.import_module(module)
    threads = 1 if workers > 1 else torch.get_num_threads()
    rows, tools_are_ours = Rows(), all(is_ours(type(plugin)) for plugin in (*bench.metrics, *bench.probes))
    waiting = sorted(names, key=lambda name: -expected_calls(name))  # the longest first
    afterwards = list(AFTERWARDS)
    running: list[Fork[Attempt]] = []
    vanilla_seconds = 0.0

    def measured(name: str) -> Attempt:
        return attempt(bench, name, rows.add, intact, alone=True)

    def start(name: str) -> None:
        running.append(Fork(name, measured, threads))

    def may_go_on(fork: Fork[Attempt], found: Attempt | None) -> bool:
        """Whether the next technique may be measured where this one was."""
        good = found is not None and not found.failed and tools_are_ours and _is_ours_by_name(fork.name)
        return good and bool(waiting) and _is_ours_by_name(waiting[0])

    with _shared_memo(bench):
        try:
            if VANILLA in waiting:
                waiting.remove(VANILLA)
                if waiting and workers > 1:  # the longest begins at once
                    start(waiting.pop(0))
                began = time.monotonic()
                if workers > 1 and tools_are_ours:
                    yield _in_the_parent(bench, rows, intact)  # what it loads, the forks to come find loaded
                    vanilla_seconds = time.monotonic() - began
                else:
                    start(VANILLA)
            while waiting or running:
                while waiting and len(running) < workers:
                    start(waiting.pop(0))
                if afterwards:
                    importlib.import_module(afterwards.pop(0))
                ready = multiprocessing.connection.wait(
                    [waited for fork in running for waited in fork.waits], 0 if afterwards else POLL_SECONDS
                )
                rows.tick(tick)
                over = [f for f in running if f.is_over(ready, time_limit(bench, f.name, vanilla_seconds))]
                for fork in over:
                    name, began = fork.name, fork.started
                    found, modules = fork.result()
                    afterwards += [m for m in modules if m not in sys.modules]
                    if name == VANILLA:
                        vanilla_seconds = time.monotonic() - began
                    if found is None and fork.pieces > 1 and not fork.late:
                        # what others left may have ended it, as where memory runs out: by itself, then
                        running.remove(fork)
                        start(name)
                        continue
                    if may_go_on(fork, found):
                        fork.then(waiting.pop(0))
                    else:
                        running.remove(fork)
                        fork.end()
                    yield found or failure(name, fork.fate())
        finally:
            for fork in running:
                fork.end()


def _in_the_parent(bench: Bench, rows: Rows, intact: Intact) -> Attempt:
    """The plain backbone, on one thread as in a fork."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return attempt(bench, VANILLA, rows.add, intact, alone=False)
    finally:
        torch.set_num_threads(threads)


def _one_after_another(bench: Bench, names: Sequence[str], tick: Tick, intact: Intact) -> Iterator[Attempt]:
    """Ours first, that a stranger's technique which ends it all ends less."""
    import torch

    threads, vanilla_seconds = torch.get_num_threads(), 0.0
    for name in sorted(names, key=lambda name: (name != VANILLA, not _is_ours_by_name(name))):
        began = time.monotonic()
        with _time_is_up_after(time_limit(bench, name, vanilla_seconds)):
            found = attempt(bench, name, functools.partial(tick, name), intact, alone=False)
        torch.set_num_threads(threads)
        if name == VANILLA:
            vanilla_seconds = time.monotonic() - began
        yield found
        if found.spoils:
            return


def _is_ours_by_name(name: str) -> bool:
    from gate.registry import create_technique
    from gate.screening.measure import ours

    try:
        return name == VANILLA or ours(create_technique(name))
    except BaseException:  # a stranger's constructor; `attempt` meets it again and tells it
        return False


@contextlib.contextmanager
def _time_is_up_after(seconds: float) -> Iterator[None]:
    """Raises ConfigurationError in what runs too long, where there are alarms and this is the main thread."""
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not usable or seconds == float("inf"):
        yield
        return

    def stop(*_: object) -> None:
        raise ConfigurationError(f"it was stopped after {seconds:.0f} s (--technique-timeout)")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _shared_memo(bench: Bench) -> Iterator[None]:
    """Answers lie in a folder while several processes measure."""
    with tempfile.TemporaryDirectory(dir=bench.scratch, prefix="memo-") as folder:
        bench.memo.folder = Path(folder)
        try:
            yield
        finally:
            bench.memo.folder = None
