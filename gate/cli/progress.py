"""Progress on stderr: a bar with the time left on a terminal, a line per technique elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]


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
    with rich.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def progress(technique: str, done: int, total: int) -> None:
            bar.update(task, description=technique, completed=done, total=total)

        def log(text: str) -> None:
            console.print(text, markup=False)

        yield progress, log


@dataclass
class _Lines:
    """A line when a technique begins; nothing moves, so that a log file stays readable."""

    stream: Any = field(default_factory=lambda: sys.stderr)
    began: float = field(default_factory=time.perf_counter)
    current: str = ""

    def progress(self, technique: str, done: int, total: int) -> None:
        if technique != self.current:
            self.current = technique
            self.log(f"[{round(100 * done / max(total, 1)):3d} %] {technique}{self._left(done, total)}")

    def log(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _left(self, done: int, total: int) -> str:
        spent = time.perf_counter() - self.began
        return f", about {spent * (total - done) / done:.0f} s left" if 0 < done < total and spent > 5 else ""
