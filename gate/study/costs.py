"""What the screen costs, over what training costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gate.study.cell import Cell
from gate.study.plan import StudySettings
from gate.study.tables import POOLED
from gate.tasks import create_task


def screen_seconds(cell: Cell, n: int) -> float:
    """Of one technique on n images at one timestep and noise: the noised pass, its own reference, every quantity."""
    return n * 2 * cell.seconds["pass"] + cell.seconds[f"n={n}"]


def training_seconds(cell: Cell, task: str) -> float:
    """Of one technique: features of the images that heads train and are judged on, and one head."""
    return cell.seconds["extraction of heads"] + cell.seconds[f"head {task}"]


def cost_ratios(
    cells: Sequence[Cell], settings: StudySettings, *, resamples: int = 400, seed: int = 0
) -> dict[str, Any]:
    """{"pooled" or task: {n: {"value", "low", "high"}}}: seconds of the screen over seconds of the training, sums over
    all cells, intervals by resampling cells. Measured on this study's heads, which are small: the ratio on a task whose
    training takes hours is far lower."""
    tasks = [create_task(name).name for name in settings.tasks]
    rng = np.random.default_rng([seed, len(cells)])
    counts = np.vstack(
        [np.ones(len(cells)), rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), resamples)]
    )
    found: dict[str, Any] = {}
    for scope in (POOLED, *tasks):
        chosen = tasks if scope == POOLED else [scope]
        training = counts @ np.array([np.mean([training_seconds(c, t) for t in chosen]) for c in cells])
        for n in settings.sizes:
            ratio = counts @ np.array([screen_seconds(c, n) for c in cells]) / training
            low, high = np.quantile(ratio[1:], [0.025, 0.975])
            found.setdefault(scope, {})[str(n)] = {
                "value": float(ratio[0]),
                "low": float(low),
                "high": float(high),
            }
    return found
