"""Measuring many techniques: one after another, or in forked worker processes with a thread each.

On a small backbone a forward pass is hundreds of small operations: two processes of one thread finish sooner than one
process of two threads. The workers inherit the bench, so what is shared is still computed once.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gate.errors import GateError, MissingWeightsError, OutOfMemoryError, UnsuitableError
from gate.machine import forkable_cores
from gate.registry import create_technique
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.screening.bench import Bench
    from gate.screening.measured import Measured

VANILLA = "vanilla"
SMALL_IMAGE = 128  # px; larger backbones fill the cores, and the memory, alone
POLL_SECONDS = 0.2
# libraries with threads of their own, there before the workers limit them: one that comes later starts as many as it
# likes, and two workers then hinder each other
THREADED = ("scipy.linalg", "sklearn.neighbors")
# what the end of a screening needs: a second and a half of imports on one core, done while the workers measure
AFTERWARDS = ("gate.screening.results", "gate.report.figures.ranking", "gate.report.figures.reconstructions")


@dataclass(frozen=True)
class Attempt:
    """What came of one technique. failed: by an error, not by what it needs. notices: lines for the user.

    unfetched: whether what it needs is weights."""

    name: str
    measured: Measured | None = None
    reason: str = ""
    fix: str = ""
    failed: bool = False
    notices: tuple[str, ...] = ()
    unfetched: bool = False


def choose_workers(bench: Bench, techniques: int) -> int:
    """As configured; `auto` is one per core for small backbones on a CPU that can fork, else 1."""
    if bench.config.workers != "auto":
        return min(bench.config.workers, techniques)
    small = bench.backbone.image_size <= SMALL_IMAGE and bench.backbone.device.type == "cpu"
    return max(1, min(forkable_cores(), techniques)) if small else 1


def attempts(
    bench: Bench, names: Sequence[str], workers: int, tick: Callable[[str, int], None]
) -> Iterator[Attempt]:
    """One Attempt per name as they finish. tick(name, rows) is called as passes finish; with workers, name is ""."""
    if workers <= 1:
        for name in names:
            yield attempt(bench, name, lambda rows, n=name: tick(n, rows))  # type: ignore[misc]
        return
    fork: Any = multiprocessing.get_context("fork")
    counter = fork.Value("q", 0)
    seen = 0
    # vanilla's passes are asked for by many, so they come first; then the longest
    order = sorted(names, key=lambda name: (name != VANILLA, -_expected_calls(name)))
    for module in THREADED if bench.probes else ():
        importlib.import_module(module)
    with _shared_memo(bench), fork.Pool(workers, _begin, (bench, counter)) as pool:
        results = pool.imap_unordered(_in_worker, order)
        for module in AFTERWARDS:
            importlib.import_module(module)
        for _ in names:
            while True:
                try:
                    finished: Attempt = results.next(timeout=POLL_SECONDS)
                    break
                except multiprocessing.TimeoutError:
                    tick("", counter.value - seen)
                    seen = counter.value
            yield finished


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
        unfetched = isinstance(error.__cause__, MissingWeightsError)
        return Attempt(name, None, error.reason, error.fix, unfetched=unfetched)
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


_worker: dict[str, Any] = {}  # a forked worker's bench and counter; the parent's stays empty


def _begin(bench: Bench, counter: Any) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    torch.set_num_threads(1)
    _worker.update(bench=bench, counter=counter, limits=threadpool_limits(1))


def _in_worker(name: str) -> Attempt:
    counter = _worker["counter"]

    def tick(rows: int) -> None:
        with counter.get_lock():
            counter.value += rows

    return attempt(_worker["bench"], name, tick)
