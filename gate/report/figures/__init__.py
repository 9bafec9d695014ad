"""Figures of a run, one file per figure. They read results.json and the arrays, and compute nothing new."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gate.runs.directory import Run

    Draw = Callable[[Run], Any]

__all__ = ["draw_all", "figures"]


def figures() -> dict[str, Draw]:
    """Every figure by file name: a function of a run that gives a Figure, its pages, or None with nothing to show."""
    from gate.report.figures import cost, features, gains, heatmap, ranking, reconstructions

    return {
        "ranking": ranking.draw,
        "suppression-and-probe-gain": gains.draw,
        "heatmap": heatmap.draw,
        "gain-and-cost": cost.draw,
        "reconstructions": reconstructions.draw,
        "features": features.draw,
    }


def draw_all(run: Run, folder: str | Path, *, missing: bool = False) -> list[Path]:
    """Write every figure that the run has numbers for as PNG and SVG into `folder`; returns the files.

    A process per core draws them: a figure takes a second, most of it in one thread. missing: those that are not there.
    """
    from gate.machine import forkable_cores

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [
        n for n in figures() if not (missing and (folder / f"{n}.svg").is_file())
    ]  # the first page's SVG comes last
    processes = min(forkable_cores(), len(names))
    if processes <= 1:
        return [file for name in names for file in _write(run, folder, name)]
    fork = multiprocessing.get_context("fork")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=_deaf) as pool:
        try:
            written = list(pool.map(_write, repeat(run), repeat(folder), names))
        except BaseException:  # whoever stops the parent shall not wait for a child
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise
    return [file for files in written for file in files]


def _deaf() -> None:
    """Ctrl-C reaches the parent, which ends its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write(run: Run, folder: Path, name: str) -> list[Path]:
    from gate.report.figures.look import save, styled
    from gate.report.shown import shown
    from gate.runs.directory import Run

    with styled():
        drawn = figures()[name](Run(run.path, shown(run.results)))
        pages = drawn if isinstance(drawn, list) else [drawn] if drawn is not None else []
        stems = [name, *(f"{name}-{i}" for i in range(2, len(pages) + 1))]
        # the last page first: the first one says that all are there
        saved = [save(page, folder / stem) for stem, page in reversed([*zip(stems, pages, strict=False)])]
        return [file for files in reversed(saved) for file in files]
