"""How far the truth strays from a prediction, beside what a draw of images adds: two numbers that a rule ships."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Coefficients = Mapping[str, float]  # of quantities, in a prediction: a plain sum
SLOPES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
TINIEST = 1e-4  # floor of an interval: a ten-thousandth of the head's error
LEAST_DRAWS = 4  # of one size, from which the spread between draws is told


@dataclass(frozen=True)
class Example:
    """One technique in one draw: what was measured, and what training said. share: of the head's error removed."""

    domain: str
    family: str
    timestep: int
    task: str
    technique: str
    leak: bool
    draw: int
    quantities: Mapping[str, float]
    share: float


@dataclass(frozen=True)
class Residuals:
    """(m,) each. predicted, truth: shares; sampling: standard deviation of the prediction between draws of images."""

    predicted: Array
    truth: Array
    sampling: Array


@dataclass(frozen=True)
class Calibration:
    """The truth strays from a prediction s by sqrt(sampling^2 + floor^2 + (slope s)^2), a standard deviation in the
    sense that `z` of them hold the truth as often as asked."""

    floor: float
    slope: float
    z: float

    def half_width(self, predicted: Array, sampling: Array) -> Array:
        return np.asarray(self.z * np.sqrt(sampling**2 + self.floor**2 + (self.slope * predicted) ** 2))


def calibrate(found: Residuals, confidence: float = 0.95) -> Calibration:
    """The narrowest floor and slope, by mean width, under which `confidence` of the truths lie inside.

    The floor of each slope is the smallest that holds enough of them, found exactly: of each residual r, the floor
    that just holds it is sqrt(max((r / z)^2 - sampling^2 - (slope s)^2, 0)).
    """
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    square = ((found.truth - found.predicted) / z) ** 2 - found.sampling**2
    rank = min(math.ceil(confidence * len(square)), len(square)) - 1
    best: tuple[float, Calibration] | None = None
    for slope in SLOPES:
        needed = np.sqrt(np.maximum(square - (slope * found.predicted) ** 2, 0))
        one = Calibration(max(float(np.sort(needed)[rank]), TINIEST), slope, z)
        width = float(one.half_width(found.predicted, found.sampling).mean())
        if best is None or width < best[0]:
            best = width, one
    assert best is not None
    return best[1]


def predict(rule: Coefficients, told: Mapping[str, float]) -> float:
    """The share of the error that will be gone."""
    return sum(c * told[name] for name, c in rule.items())


def residuals(rule: Coefficients, examples: Sequence[Example]) -> Residuals:
    """Of every example, in their order."""
    predicted = np.array([predict(rule, e.quantities) for e in examples])
    groups: dict[tuple[str, int, str, str], list[int]] = {}
    for i, e in enumerate(examples):
        groups.setdefault((e.domain, e.timestep, e.task, e.technique), []).append(i)
    sampling = np.zeros(len(examples))
    for rows in groups.values():
        sampling[rows] = predicted[rows].std(ddof=1)
    return Residuals(predicted, np.array([e.share for e in examples]), sampling)
