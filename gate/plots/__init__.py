"""Figures of a run, one file per figure. They read results.json and the arrays, and compute nothing new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gate.run import Run

    Draw = Callable[[Run], Any]

__all__ = ["draw_all", "figures"]


def figures() -> dict[str, Draw]:
    """Every figure by file name: a function of a run that gives a Figure, or None with nothing to show."""
    from gate.plots import cost, features, gains, heatmap, ranking, reconstructions

    return {
        "ranking": ranking.draw,
        "suppression-and-probe-gain": gains.draw,
        "heatmap": heatmap.draw,
        "gain-and-cost": cost.draw,
        "reconstructions": reconstructions.draw,
        "features": features.draw,
    }


def draw_all(run: Run, folder: str | Path) -> list[Path]:
    """Write every figure that the run has numbers for as PNG and SVG into `folder`; returns the files."""
    from gate.plots.look import save, styled

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with styled():
        for name, draw in figures().items():
            figure = draw(run)
            if figure is not None:
                files += save(figure, folder / name)
    return files
