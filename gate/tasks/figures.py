"""The figures of the tasks: functions of summed counts, so that every one of them can be resampled and paired."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gate.measure import Figure, Measure, confusion_error, confusion_margins

Array = npt.NDArray[Any]


class ConfusionMeasure(Measure):
    """A figure of confusion counts (n, k, k), rows the truth, columns the prediction. Over classes that the truth
    holds."""

    direction = "higher"
    range = (0.0, 1.0)
    figure: ClassVar[Figure] = "miou"

    def columns(self, values: Array) -> npt.NDArray[np.float64]:
        return super().columns(confusion_margins(values))

    def error_of_sums(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        return confusion_error(sums.reshape(*sums.shape[:-1], 3, -1), self.figure)


class MeanIou(ConfusionMeasure):
    """Intersection over union, mean over classes; pixels of all samples are pooled first."""

    name = "miou"
    summary = "Intersection over union, mean over classes"


class PixelAccuracy(ConfusionMeasure):
    """Share of the pixels that are right."""

    name = "aacc"
    summary = "Share of all pixels that are right"
    figure = "accuracy"


class MeanAccuracy(ConfusionMeasure):
    """Recall, mean over classes."""

    name = "macc"
    summary = "Share of a class's pixels that are right, mean over classes"
    figure = "balanced-accuracy"


class Accuracy(ConfusionMeasure):
    """Share of the images whose class is right."""

    name = "accuracy"
    summary = "Share of the images whose class is right"
    figure = "accuracy"


class BalancedAccuracy(ConfusionMeasure):
    """Recall of images, mean over classes."""

    name = "balanced-accuracy"
    summary = "Share of a class's images that are right, mean over classes"
    figure = "balanced-accuracy"


class Pck(Measure):
    """Share of keypoints found within alpha of a length. values: (n, 1 + rights), points of a pair and how many of them
    are right, by each threshold in turn; `column` says which. by_pair: mean over pairs of the pair's own share, as some
    papers report it, instead of the share of all points."""

    direction = "higher"
    range = (0.0, 1.0)

    def __init__(self, name: str, summary: str, column: int, by_pair: bool = False) -> None:
        vars(self).update(name=name, summary=summary)
        self.column, self.by_pair = column, by_pair

    def columns(self, values: Array) -> npt.NDArray[np.float64]:
        points, right = (
            np.asarray(values[..., 0], np.float64),
            np.asarray(values[..., self.column], np.float64),
        )
        if self.by_pair:
            share = np.where(points > 0, right / np.maximum(points, 1), 0)
            return super().columns(np.stack([share, np.where(points > 0, 1.0, 0.0)], axis=-1))
        return super().columns(np.stack([right, points], axis=-1))

    def error_of_sums(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        right, points = sums[..., 0], sums[..., 1]
        return np.asarray(np.where(points > 0, 1 - right / np.where(points > 0, points, 1), 0), np.float64)


SEGMENTATION = (MeanIou(), PixelAccuracy(), MeanAccuracy())
CLASSIFICATION = (Accuracy(), BalancedAccuracy())
CORRESPONDENCE = (
    Pck("pck-image", "Share of points within a tenth of the image's longer side", 1),
    Pck("pck-box", "Share of points within a tenth of the longer side of the object's box", 2),
    Pck("pck-box-by-pair", "The same, a share per pair, mean over pairs", 2, by_pair=True),
)
