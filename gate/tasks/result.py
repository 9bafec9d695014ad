"""What an evaluation found: figures with intervals, seeds' spread, and gains over vanilla, paired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.measure import Measure
from gate.ranking.statistics import Interval, studentise
from gate.tasks.task import Array, Task

Floats = npt.NDArray[np.float64]
INTERVAL_SEED = 0


@dataclass(frozen=True)
class Row:
    """One figure of one arm, in percent; gains in points.

    value: mean over the heads' seeds, with its interval over test samples. spread: deviation between seeds (NaN for
    one). gain: over vanilla on the same samples, paired; None for vanilla itself. tested: n of the interval.
    """

    arm: str
    figure: str
    primary: bool
    direction: str
    value: Interval
    spread: float
    gain: Interval | None
    seeds: int

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return asdict(self)


def rows_of(task: Task, counts: Mapping[str, Array], *, vanilla: str, resamples: int) -> list[Row]:
    """A row per arm and figure. counts: (seeds, n, ...) of each arm, over the same n samples."""
    rows = []
    for measure in task.measures:
        columns = {arm: _columns(measure, held) for arm, held in counts.items()}
        n = len(columns[vanilla])

        def figures(multiplicities: Floats, measure: Measure = measure, columns: Any = columns) -> Floats:
            """(arms + others, ...): each arm's figure, then each other's gain; all higher better here."""
            each = {arm: measure.errors(held, multiplicities).mean(axis=-1) for arm, held in columns.items()}
            gains = [each[vanilla] - each[arm] for arm in each if arm != vanilla]
            return 100 * np.stack([*(1 - error for error in each.values()), *gains])

        found = studentise(figures, n, resamples=resamples, seed=INTERVAL_SEED).intervals()
        gains = dict(zip([arm for arm in columns if arm != vanilla], found[len(columns) :], strict=True))
        for arm, value in zip(columns, found, strict=False):
            seeds = 100 * measure.errors(columns[arm], np.ones(n))
            spread = float(seeds.std(ddof=1)) if len(seeds) > 1 else float("nan")
            primary = measure is task.primary
            rows.append(
                Row(arm, measure.name, primary, measure.direction, value, spread, gains.get(arm), len(seeds))
            )
    return rows


def _columns(measure: Measure, counts: Array) -> Floats:
    """(seeds, n, ...) -> (n, seeds, m)."""
    return measure.columns(np.moveaxis(np.asarray(counts), 0, 1))
