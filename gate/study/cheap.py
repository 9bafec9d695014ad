"""The cheap quantities of one technique, at every size and draw: what a screen could know, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.probe import Folds, Probe, grid_mask, make_folds, pooled
from gate.sample import SampleSet
from gate.study.h_score import h_score, moments_of_rows
from gate.study.logme import logme_of_moments, logme_of_rows
from gate.study.moments import Moments, fit_regression, moments_of
from gate.study.neighbours import nearest_classes
from gate.study.pool import label_array

Array = npt.NDArray[Any]
ALPHA = 1000.0  # of the regression on all positions: as the probes'
NEIGHBOUR_POSITIONS = 16  # per image, that pixels' neighbours are sought among


@dataclass(frozen=True, eq=False)
class Ground:
    """What is true of the screening images on a grid, shared by all techniques.

    masks: (n, h w) int64, -1 = unlabelled. labels: (n,). few: (n, NEIGHBOUR_POSITIONS), drawn positions.
    """

    samples: SampleSet
    masks: Array
    labels: Array
    few: Array

    @classmethod
    def of(cls, samples: SampleSet, grid: tuple[int, int], seed: int) -> Ground:
        k = len(samples.mask_classes)
        masks = np.stack([grid_mask(s.mask, grid, k).ravel() for s in samples if s.mask is not None])
        rng = np.random.default_rng([seed, len(samples)])
        few = np.stack([rng.permutation(masks.shape[1])[:NEIGHBOUR_POSITIONS] for _ in range(len(samples))])
        return cls(samples, masks, label_array(samples), few)


@dataclass(frozen=True, eq=False)
class Draw:
    """Some of the screening images, and folds over them. rows: where they lie."""

    samples: SampleSet
    rows: slice
    folds: Folds


def draw(ground: Ground, rows: slice, *, seed: int = 0) -> Draw:
    """Fewer images than classes are split without regard to labels."""
    samples = ground.samples[rows]
    known = samples if len(samples) >= len(samples.classes) else samples.without("label")
    return Draw(samples, rows, make_folds(known, seed=seed))


def quantities(
    features: Array, ground: Ground, draws: Sequence[Draw], probes: Sequence[Probe]
) -> tuple[dict[str, list[float]], dict[str, Array], dict[str, float]]:
    """Every quantity of every draw: numbers by draw, columns of the additive probes, and seconds by size.

    features: (n, c, h, w), `gate.probe.probe_map`s of the screening images. The moments are made once, and their time
    is charged to each size by its share of the images.
    """
    began = time.perf_counter()
    k = len(ground.samples.mask_classes)
    moments = moments_of(features, ground.masks, k)
    rows = pooled(features)
    shared = (time.perf_counter() - began) / len(features)
    drawn: dict[str, list[float]] = {}
    columns: dict[str, list[Array]] = {}
    seconds: dict[str, list[float]] = {}
    for one in draws:
        began = time.perf_counter()
        found = dict(_of_probes(features, one, probes, columns))
        found |= _of_positions(features, ground, moments, one)
        found |= _of_images(rows[one.rows], ground.labels[one.rows], one.folds)
        size = len(one.samples)
        seconds.setdefault(f"n={size}", []).append(time.perf_counter() - began + shared * size)
        for name, value in found.items():
            drawn.setdefault(name, []).append(value)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return drawn, joined, {n: float(np.mean(s)) for n, s in seconds.items()}


def _of_probes(
    features: Array, one: Draw, probes: Sequence[Probe], columns: dict[str, list[Array]]
) -> Iterator[tuple[str, float]]:
    """The error of each of gate's own probes, as a screening makes it."""
    for probe in probes:
        values = probe.stored(probe.evaluate(features[one.rows], one.samples, one.folds))
        cells = probe.columns(values[:, None])
        yield probe.name, float(probe.errors(cells, np.ones(len(cells)))[0])
        if not probe.figure:
            columns.setdefault(probe.name, []).append(cells[:, 0])


def _of_positions(features: Array, ground: Ground, moments: Moments, one: Draw) -> dict[str, float]:
    rows = np.arange(*one.rows.indices(len(features)))
    whole = moments.of(rows)
    error = 0.0
    for _, test in one.folds:
        judged = rows[test]
        held = Moments(moments.gram[judged], moments.sums[judged], moments.counts[judged])
        regression = fit_regression(whole.minus(moments.of(judged)), ALPHA)
        error += float(regression.squared_errors(held).sum())
    return {
        "pixel-regression": error / whole.n,
        "logme-pixels": logme_of_moments(whole),
        "h-score-pixels": h_score(whole),
        "knn-pixels": _knn_pixels(features, ground, rows, one.folds),
    }


def _knn_pixels(features: Array, ground: Ground, rows: Array, folds: Folds) -> float:
    """Error, 1 - mean recall over the classes of the truth."""
    few = ground.few[rows]
    truth = np.take_along_axis(ground.masks[rows], few, axis=1)
    flat = features[rows].reshape(len(rows), features.shape[1], -1)
    points = np.take_along_axis(flat, few[:, None, :], axis=2).swapaxes(1, 2)  # (n, m, c)
    k = len(ground.samples.mask_classes)
    guess = np.zeros_like(truth)
    for train, test in folds:
        known = truth[train] >= 0
        found = nearest_classes(
            points[train][known], truth[train][known], points[test].reshape(-1, points.shape[2]), k
        )
        guess[test] = found.reshape(len(test), -1)
    recalls = [(guess[truth == c] == c).mean() for c in range(k) if (truth == c).any()]
    return 1 - float(np.mean(recalls))


def _of_images(rows: Array, labels: Array, folds: Folds) -> dict[str, float]:
    """LogME and the H-score of pooled, standardised features for image labels; NaN where one class is all there is."""
    if len(np.unique(labels)) < 2:
        return {"logme-images": float("nan"), "h-score-images": float("nan")}
    std = rows.std(axis=0)
    standard = (rows - rows.mean(axis=0)) / np.where(std > 0, std, 1)
    k = int(labels.max()) + 1
    return {
        "logme-images": logme_of_rows(standard, labels),
        "h-score-images": h_score(moments_of_rows(standard, labels, k)),
    }
