"""What each cheap quantity says of each technique, and what trained heads say: gains over vanilla, higher is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.measure import share_removed
from gate.ranking.statistics import resample_counts
from gate.screening.config import SCORE_METRICS
from gate.study.cell import Cell
from gate.study.places import Place
from gate.study.plan import StudySettings, draws_of

Array = npt.NDArray[Any]
RISING = (
    "logme-pixels",
    "logme-images",
    "h-score-pixels",
    "h-score-images",
    "high-frequency-ratio",
    "carried-image",
)  # higher is better and without an error of 0: their gain is a difference, others' a share of the error
SCORE_PROBES = ("pixel-linear", "linear")  # of the weighted score
CARRIED = ("carried-spread", "carried-breadth", "carried-image")


def gains(place: Place, settings: StudySettings) -> dict[str, Array]:
    """{quantity: (draws, techniques)}, draws in the order of `draws_of`.

    A share of vanilla's error removed, or, for those of RISING, a difference. What could not be made is 0, as of a
    technique that does nothing. Composites: suppression, probe-gain, and score (half each).
    """
    draws = draws_of(settings)
    cells = list(place.cells.values())
    found: dict[str, Array] = {}
    for name in place.vanilla.drawn:
        ours = np.array([cell.drawn[name] for cell in cells]).T
        found[name] = _gain(name, ours, np.array(place.vanilla.drawn[name])[:, None])
    for key in place.vanilla.single:
        if key == "carried":
            continue
        name = key.partition(" ")[2]
        ours = np.stack([_levels(cell, key, draws) for cell in cells], axis=1)  # (draws, techniques, layers)
        theirs = _levels(place.vanilla, key, draws)[:, None]
        if name in RISING:
            found[name] = (ours - theirs).mean(axis=2)
        else:
            found[name] = share_removed(ours, np.broadcast_to(theirs, ours.shape))
    if "carried" in place.vanilla.single:
        for i, name in enumerate(CARRIED):
            change = np.array([c.single["carried"][i] - place.vanilla.single["carried"][i] for c in cells])
            found[name] = np.tile(change, (len(draws), 1))
    found = {name: np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0) for name, value in found.items()}
    return found | _composed(found)


def _gain(name: str, ours: Array, theirs: Array) -> Array:
    if name in RISING:
        found: Array = ours - theirs
        return found
    return share_removed(ours[..., None], np.broadcast_to(theirs, ours.shape)[..., None])


def _levels(cell: Cell, key: str, draws: list[tuple[int, slice]]) -> Array:
    """Mean over each draw's images, (draws, layers); of generated images, of which there are few, over all."""
    values = np.atleast_2d(cell.single[key]).astype(np.float64)  # (layers, n)
    few = key.startswith("image ")
    found: Array = np.stack([values[:, slice(None) if few else rows].mean(axis=1) for _, rows in draws])
    return found


def _composed(found: dict[str, Array]) -> dict[str, Array]:
    made: dict[str, Array] = {}
    metrics = [found[m] for m in SCORE_METRICS if m in found]
    probes = [found[p] for p in SCORE_PROBES if p in found]
    if metrics and probes:
        made["suppression"], made["probe-gain"] = np.mean(metrics, axis=0), np.mean(probes, axis=0)
        made["score"] = (made["suppression"] + made["probe-gain"]) / 2
    return made


@dataclass(frozen=True, eq=False)
class Truth:
    """Of one task at one place, (techniques,) each. share: of vanilla's error that is gone. points: of the figure, in
    hundredths, over vanilla. sign: 1 or -1 where the paired interval over test samples excludes 0, else 0. vanilla: its
    figure's error."""

    share: Array
    points: Array
    sign: Array
    vanilla: float


def truth_of_place(place: Place, task: str, *, resamples: int = 400, seed: int = 0) -> Truth:
    """Means over the heads' seeds; intervals of 95 % by resampling test samples, the same for all techniques."""

    def errors(cell: Cell, counts: Array) -> Array:
        return np.asarray(cell.errors(task, counts).mean(axis=0))

    n = place.vanilla.heads(task).shape[1]
    once = np.ones((1, n))
    counts = resample_counts(np.random.default_rng([seed, n]), n, resamples)
    base, drawn = errors(place.vanilla, once)[0], errors(place.vanilla, counts)
    share, points, sign = [], [], []
    for cell in place.cells.values():
        error = errors(cell, once)[0]
        low, high = np.quantile(drawn - errors(cell, counts), [0.025, 0.975])
        share.append(1 - error / base if base > 0 else 0.0)
        points.append(100 * (base - error))
        sign.append(1.0 if low > 0 else -1.0 if high < 0 else 0.0)
    return Truth(np.array(share), np.array(points), np.array(sign), float(base))
