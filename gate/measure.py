"""What metrics and probes share: numbers per sample, and the error of any sample of them."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gate.errors import PluginError

Direction = Literal["lower", "higher"]
Figure = Literal["miou", "balanced-accuracy", "accuracy"]
Array = npt.NDArray[Any]  # of whatever type a metric or probe stores
DIRECTIONS = ("lower", "higher")
SLACK = 1e-4  # of the range's largest bound: what rounding may add to a number


class Measure:
    """A number with a direction, made of per-sample columns that can be resampled. A subclass is a metric or a probe.

    direction: which way is better. range: what the number can be; its better end must be finite, for error is the
    distance to it: 0 is perfect. Rankings compare errors alone, so a measure counts the right way up by its facts.
    standard: whether a screening measures it unasked; what costs more, or answers another question than which technique
    is best, is measured when it is named, or with `all`. unlisted: why not even `all` measures it, and what it costs.

    Most measures are additive: their columns' sum over samples is all that they need. By default there is one column,
    the number itself; override `error_of_sums` where it is another function of sums. A statistic of the set (MMD, say)
    overrides `error_of_set`; its columns are what each sample contributes.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    direction: ClassVar[Direction] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    standard: ClassVar[bool] = True
    unlisted: ClassVar[str] = ""

    @property
    def best(self) -> float:
        """The end of the range where nothing is wrong."""
        return self.range[0] if self.direction == "lower" else self.range[1]

    @property
    def is_additive(self) -> bool:
        """Whether sums over samples are all that the error needs."""
        return type(self).error_of_set is Measure.error_of_set

    def columns(self, values: Array) -> npt.NDArray[np.float64]:
        """What was stored, (n, cells, ...), as float64 columns (n, cells, m), m of them a cell."""
        wide = values.reshape(*values.shape[:2], math.prod(values.shape[2:]))
        return np.ascontiguousarray(
            wide, dtype=np.float64
        )  # so that equal values give equal bits in products

    def error_of_sums(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        """The error, >= 0, of samples whose columns add up to `sums`. sums: (..., m). n: (...), how many they are."""
        mean = sums[..., 0] / n
        return np.asarray(mean - self.best if self.direction == "lower" else self.best - mean)

    def error_of_set(self, columns: Array, multiplicities: Array) -> npt.NDArray[np.float64]:
        """The error of resampled samples. columns: (n, m). multiplicities: (..., n), how often each occurs -> (...)."""
        return self.error_of_sums(multiplicities @ columns, multiplicities.sum(axis=-1))

    def errors(self, columns: Array, multiplicities: Array) -> npt.NDArray[np.float64]:
        """The error in each cell, (..., cells). columns: (n, cells, m). multiplicities: (..., n), as `error_of_set`."""
        n, cells = columns.shape[:2]
        if not self.is_additive:
            each = [self.error_of_set(columns[:, c], multiplicities) for c in range(cells)]
            return np.stack(each, axis=-1)
        sums = (multiplicities @ columns.reshape(n, -1)).reshape(*multiplicities.shape[:-1], cells, -1)
        return self.error_of_sums(sums, multiplicities.sum(axis=-1)[..., None])

    def number(self, error: float) -> float:
        """The number that an error stands for."""
        return self.best + error if self.direction == "lower" else self.best - error

    def stored(self, values: Array) -> Array:
        """The values as they are. Raises PluginError where the one column, which is the number, leaves `range`."""
        plain = self.is_additive and type(self).error_of_sums is Measure.error_of_sums
        low, high = self.range
        slack = SLACK * max(1.0, *(abs(x) for x in self.range if math.isfinite(x)))
        seen = values[np.isfinite(values)]  # NaN and infinity are seen to where numbers are compared
        if plain and ((seen < low - slack) | (seen > high + slack)).any():
            raise PluginError(
                f"{self.name} gives {seen.min():g} to {seen.max():g}, outside its range {self.range}; state the range "
                "that it has."
            )
        return values


def check_facts(cls: type[Measure], kind: str, wanted: tuple[str, ...]) -> None:
    """Refuse a class that does not state what it must, in a sentence. kind: "Metric" or "Probe"."""
    missing = [fact for fact in wanted if not getattr(cls, fact)]
    if missing:
        raise PluginError(
            f"{kind} {cls.name!r} does not state its {' or '.join(missing)}; set it on the class."
        )
    if cls.direction not in DIRECTIONS:
        raise PluginError(
            f"{kind} {cls.name!r} has direction {cls.direction!r}; it is 'lower' or 'higher', whichever is better."
        )
    low, high = cls.range
    if not low < high:
        raise PluginError(f"{kind} {cls.name!r} has range {cls.range}; the first number is the lower one.")
    if not math.isfinite(low if cls.direction == "lower" else high):
        raise PluginError(
            f"{kind} {cls.name!r} is better {cls.direction} and its range {cls.range} has no end there: give it a "
            "finite one, for what is ranked is the distance to it."
        )


def share_removed(error: Array, vanilla: Array) -> npt.NDArray[np.float64]:
    """The share of vanilla's error that is gone, 1 - error / vanilla, in (-inf, 1]: the one unit of all comparisons.

    Mean over cells. error, vanilla: (..., cells) >= 0 -> (...,). A cell without error in both counts as 0; one where
    only vanilla has none has no share and is skipped; where every cell is skipped the result is 0, so such a resample
    can only widen an interval towards 0.
    """
    skipped = (vanilla <= 0) & (error > 0)
    with np.errstate(all="ignore"):
        shares = np.where(vanilla > 0, 1 - error / np.where(vanilla > 0, vanilla, 1), 0 * error)
    used = np.maximum((~skipped).sum(axis=-1), 1)
    return np.asarray(np.where(skipped, 0, shares).sum(axis=-1) / used, dtype=np.float64)


def share_slopes(error: Array, vanilla: Array) -> tuple[Array, Array]:
    """Derivatives of `share_removed` by each error and by vanilla's. error, vanilla: (cells,) -> (cells,) each."""
    there = vanilla > 0
    used = max(int((there | (error <= 0)).sum()), 1)
    safe = np.where(there, vanilla, 1)
    return np.where(there, -1 / safe, 0.0) / used, np.where(there, error / safe**2, 0.0) / used


def confusion_margins(counts: Array) -> npt.NDArray[np.float64]:
    """(..., k, k) confusion counts, rows true -> (..., 3, k): counts true, predicted and correct, per class."""
    parts = [counts.sum(axis=-1), counts.sum(axis=-2), np.diagonal(counts, axis1=-2, axis2=-1)]
    return np.stack(parts, axis=-2).astype(np.float64)


def confusion_error(margins: Array, figure: Figure) -> npt.NDArray[np.float64]:
    """1 - figure of summed confusion counts, in [0, 1]. margins: (..., 3, k), `confusion_margins`. Returns (...,).

    miou: mean intersection over union; balanced-accuracy: mean recall. Both over the classes that the truth
    holds, so that one set of samples is averaged over the same classes whatever a technique predicts. accuracy: of all
    that was tested, the share that is right. 0 where the truth holds no class.
    """
    true, predicted, correct = margins[..., 0, :], margins[..., 1, :], margins[..., 2, :]
    if figure == "accuracy":
        tested = true.sum(axis=-1)
        right = correct.sum(axis=-1) / np.where(tested > 0, tested, 1)
        return np.asarray(np.where(tested > 0, 1 - right, 0), dtype=np.float64)
    whole = true + predicted - correct if figure == "miou" else true
    present = true > 0
    parts = np.where(present, correct / np.where(present, whole, 1), 0).sum(axis=-1)
    classes = present.sum(axis=-1)
    return np.asarray(np.where(classes > 0, 1 - parts / np.maximum(classes, 1), 0), dtype=np.float64)


def confusion_slope(counts: Array, figure: Figure) -> npt.NDArray[np.float64]:
    """Derivative of `confusion_error` by each count of predictions, the truth unchanged. counts: (k, k) -> (k, k)."""
    true, predicted, correct = confusion_margins(counts)
    present = true > 0
    classes = max(1, int(present.sum()))
    if figure == "accuracy":
        return -np.eye(len(counts)) / max(1.0, float(true.sum()))
    if figure == "balanced-accuracy":
        return -np.diag(np.where(present, 1 / np.where(present, true, 1), 0)) / classes
    whole = np.where(present, true + predicted - correct, 1)
    hit, miss = np.where(present, 1 / whole, 0), np.where(present, -correct / whole**2, 0)
    return -np.where(np.eye(len(counts), dtype=np.bool_), hit, miss[None, :]) / classes
