"""Which of several candidates has the smallest sum of errors, asked as seldom as may be (ours, for the Diffusion
Classifier of Li et al. 2023, whose fixed stages lose too much).

The exhaustive answer is a sum over a fixed set of noised copies. What is left of it after some of them is foretold from
what was seen, by a Gaussian model of how errors vary over the schedule; a candidate goes once the best is too far ahead
for the rest to make up. This module imports no torch, so that listing is instant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]
# How much errors differ between class prompts along the schedule, and how alike two copies of one image are: read off
# 80 scenes of tiny's trained art. They only shape when a candidate goes, never which of two sums is smaller.
PLACES, SPREAD = (0.0, 0.35, 0.7, 0.85, 1.0), (0.85, 1.4, 0.85, 0.4, 0.1)
ALIKE, REACH = (
    0.55,
    0.5,
)  # correlation of neighbouring copies; share of the schedule over which it falls to 1/e


@functools.cache
def covariance(copies: int) -> Array:
    """(copies, copies): of a candidate's errors at evenly spaced noise levels, up to one factor for each image."""
    place = (np.arange(copies) + 0.5) / copies
    alike = ALIKE * np.exp(-np.abs(place[:, None] - place) / REACH)
    np.fill_diagonal(alike, 1)
    spread = np.interp(place, PLACES, SPREAD)
    return np.asarray(alike * spread[:, None] * spread)


@functools.cache
def race_order(copies: int) -> tuple[int, ...]:
    """The copies, the one first that leaves least variance in the sum of all, and so on greedily."""
    left, order = covariance(copies).copy(), []
    for _ in range(copies):
        tells = np.full(copies, -1.0)
        rest = [k for k in range(copies) if k not in order]
        tells[rest] = left[rest].sum(axis=1) ** 2 / left[rest, rest]
        best = int(tells.argmax())
        left -= np.outer(left[best], left[best]) / left[best, best]
        order.append(best)
    return tuple(order)


@dataclass(frozen=True, eq=False)
class Foresight:
    """What the first `made` copies of the order tell of the sum of all: it is weights . errors, give or take `sd`.

    weights: (made,). scale: (made,), what the errors are divided by to find an image's own factor. sd: of one
    candidate's sum, for a factor of 1; 0 once every copy is made.
    """

    weights: Array
    scale: Array
    sd: float


@functools.cache
def foresight(copies: int, made: int) -> Foresight:
    order = np.array(race_order(copies))
    whole = covariance(copies)[np.ix_(order, order)]
    seen, cross, rest = whole[:made, :made], whole[made:, :made], whole[made:, made:]
    regression = np.linalg.solve(seen, cross.T).T  # (left, made)
    variance = float((rest - regression @ cross.T).sum())
    return Foresight(1 + regression.sum(axis=0), np.sqrt(np.diag(seen)), math.sqrt(max(variance, 0.0)))


def race(
    rows: int,
    candidates: int,
    copies: int,
    strictness: float,
    error: Callable[[list[int], list[int], int], Tensor],
) -> list[int]:
    """Index of the candidate with the smallest sum over all copies, of each row; a tie goes to the first.

    error: (rows, their candidates, both (m,), copy) -> (m,) float64, asked once for each triple. strictness: standard
    errors of the foretold difference to the best beyond which a candidate goes, widened as Student's t by the
    number of errors that the image's own factor is estimated from; inf is the exhaustive argmin. Each row decides by
    its own errors alone.
    """
    alive = [np.arange(candidates) for _ in range(rows)]
    seen = np.full((rows, candidates, copies), np.nan)  # copies in the order of the race
    for made, copy in enumerate(race_order(copies), start=1):
        pairs = [(row, int(c)) for row in range(rows) if len(alive[row]) > 1 for c in alive[row]]
        if not pairs:
            break
        which, whom = [row for row, _ in pairs], [c for _, c in pairs]
        seen[which, whom, made - 1] = error(which, whom, copy).numpy()
        if made < copies and strictness != math.inf:
            for row in dict.fromkeys(which):
                alive[row] = _still_in(seen[row, :, :made], alive[row], foresight(copies, made), strictness)
    return [int(kept[seen[row, kept].sum(axis=1).argmin()]) for row, kept in enumerate(alive)]


def _still_in(seen: Array, alive: npt.NDArray[Any], ahead: Foresight, strictness: float) -> npt.NDArray[Any]:
    """Those that can still win. seen: (candidates, made) errors of a row, nan where they were not asked."""
    from scipy.stats import norm, t

    there = ~np.isnan(seen)
    free = int((there.sum(axis=0) - 1).sum())
    apart = (seen - np.nanmean(seen, axis=0)) / ahead.scale
    factor = math.sqrt(float(np.nansum(apart**2)) / free)
    foretold = seen[alive] @ ahead.weights
    margin = float(t.isf(norm.sf(strictness), free)) * factor * math.sqrt(2) * ahead.sd
    return np.asarray(alive[foretold - foretold.min() <= margin])
