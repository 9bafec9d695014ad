"""Progress on stderr: a bar with the time left on a terminal, a line for every tenth elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gate.names import harmless

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]
REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def reporting(*, quiet: bool) -> Iterator[tuple[Progress, Log]]:
    """The two callbacks of a screening: progress(technique, done rows, total rows) and log(one line)."""
    if quiet:
        yield (lambda *_: None), (lambda _: None)
    elif sys.stderr.isatty():
        with _bar() as pair:
            yield pair
    else:
        lines = _Lines()
        yield lines.progress, lines.log


@contextlib.contextmanager
def _bar() -> Iterator[tuple[Progress, Log]]:
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    columns = (
        rich.TextColumn("{task.description:<24.24}", markup=False),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("eta"),
        rich.TimeRemainingColumn(),
    )
    # no refreshing thread: a screening forks, and a thread's locks would be forked with it
    with rich.Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("loading", total=None)
        bar.refresh()
        shown = time.monotonic()

        def progress(technique: str, done: int, total: int) -> None:
            nonlocal shown
            bar.update(task, description=harmless(technique), completed=done, total=total)
            if done == total or time.monotonic() - shown > REFRESH_SECONDS:
                bar.refresh()
                shown = time.monotonic()

        def log(text: str) -> None:
            console.print(harmless(text), markup=False)

        yield progress, log


@dataclass
class _Lines:
    """A line for every tenth of the way; nothing moves, so that a log file stays readable."""

    stream: Any = field(default_factory=lambda: sys.stderr)
    began: float = field(default_factory=time.perf_counter)
    told: int = -1
    before: int = 0

    def progress(self, technique: str, done: int, total: int) -> None:
        if self.told < 0:
            self.began, self.before = time.perf_counter(), done  # loading says nothing about the pace
        tenth = 10 * done // max(total, 1)
        if tenth > self.told:
            self.told = tenth
            self.log(f"[{100 * done // max(total, 1):3d} %] {technique}{self._left(done, total)}")

    def log(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads any more: no reason to end a screening
            print(harmless(text), file=self.stream, flush=True)

    def _left(self, done: int, total: int) -> str:
        spent, made = time.perf_counter() - self.began, done - self.before
        return f", about {spent * (total - done) / made:.0f} s left" if made > 0 and done < total else ""
