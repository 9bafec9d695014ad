"""Which class each position shows, read linearly from its feature vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gate.measure import Figure, confusion_slope
from gate.probe import Folds, Probe, chunks, grid_mask, keyed_generator, map_counts, require_truth, sketches
from gate.ridge import Ridge, blurred, one_hot_ridge
from gate.sample import SampleSet

Array = npt.NDArray[Any]
ByResponse = Callable[[Array, Array], Array]
ALPHA = 1000.0  # positions of one image resemble each other: they teach less than their number says
BLUR = 0.4  # meets the spread of refits on independent scenes, n = 16 ... 128: python -m tests.coverage
POSITIONS = 32  # per training sample: neighbours on a map say nearly the same, and cost grows with rows


class PixelLinear(Probe):
    """Ridge regression onto one-hot mask classes, one row per position; the highest response wins.

    Training rows are `positions` per sample, drawn evenly over the classes that the sample shows by a
    generator of (seed, sample id), so every technique, and any order of samples, trains on the same ones;
    classes weigh equally. Every labelled position of a held-out sample is tested. alpha: strength of the
    ridge in units of standardised columns; positions: None trains on all.
    """

    name = "pixel-linear"
    summary = "Mask class of every position from its feature vector, by ridge regression"
    source = "Label-scarce segmentation: Baranchuk et al. 2022 (arXiv 2112.03126); ridge in closed form"
    needs = "masks"
    figure: ClassVar[Figure | Literal[""]] = "miou"

    balanced: ClassVar[bool] = True  # classes, in the fit and among its positions

    def __init__(self, *, alpha: float = ALPHA, positions: int | None = POSITIONS, seed: int = 0) -> None:
        self.alpha, self.positions, self.seed = alpha, positions, seed
        self._known: tuple[SampleSet, tuple[int, int], Array, list[Array]] | None = None

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        return self._fitted(features, samples, folds)[0]

    def judge(self, features: Array, samples: SampleSet, folds: Folds) -> tuple[Array, Array]:
        counts, fits = self._fitted(features, samples, folds)
        truth, _ = self._truth(samples, features.shape[2:], counts.shape[1])
        slopes = confusion_slope(counts.sum(axis=0), "miou")
        change = np.zeros(len(features))
        for fit in fits:

            def by_response(tested: Array, flat: Array, fit: Fit = fit) -> Array:
                known = truth[tested]
                each = (
                    slopes[np.maximum(known, 0)][..., fit.ridge.present] * (known >= 0)[..., None]
                )  # (m, h w, k')
                return blurred(fit.responses(flat), each.swapaxes(1, 2), BLUR)

            change += fit.left_out(features, by_response)
        return counts, change

    def _fitted(
        self, features: Array, samples: SampleSet, folds: Folds
    ) -> tuple[npt.NDArray[np.int64], list[Fit]]:
        """Counts, and the fit of each fold that had anything to learn from."""
        k = require_truth(samples, features, folds, "masks")
        truth, fits = self.fits(features, samples, folds, k)
        predicted = np.zeros_like(truth)  # nothing labelled to learn from: class 0 everywhere
        for fit in fits:
            for tested, flat in held_out(features, fit.test):
                predicted[tested] = fit.ridge.present[fit.responses(flat).argmax(axis=1)]
        return map_counts(truth, predicted, k), fits

    def fits(self, features: Array, samples: SampleSet, folds: Folds, k: int) -> tuple[Array, list[Fit]]:
        """Classes of all positions, (n, h w), -1 unlabelled, and the fit of each fold that could learn anything."""
        _, c, h, w = features.shape
        truth, chosen = self._truth(samples, (h, w), k)
        rows = [
            feature.reshape(c, h * w)[:, at].T
            for part, maps in chunks(features)
            for feature, at in zip(maps, chosen[part], strict=True)
        ]
        fits = []
        for train, test in folds:
            y = np.concatenate([truth[i][chosen[i]] for i in train])
            if len(y):
                owner = np.repeat(train, [len(chosen[i]) for i in train])
                of_fold = np.concatenate([rows[i] for i in train])
                fits.append(fit_ridge(of_fold, y, self.alpha, owner, test, balanced=self.balanced))
        return truth, fits

    def _truth(self, samples: SampleSet, grid: tuple[int, int], k: int) -> tuple[Array, list[Array]]:
        """Classes of all positions, (n, h w), and the training positions of each sample: one set for all techniques."""
        known = self._known
        if known is None or known[0] is not samples or known[1] != grid:
            truth = np.stack([grid_mask(s.mask, grid, k).ravel() for s in samples if s.mask is not None])
            chosen = [self._choose(row, s.id) for row, s in zip(truth, samples, strict=True)]
            self._known = known = samples, grid, truth, chosen
        return known[2], known[3]

    def _choose(self, truth: Array, identity: str) -> Array:
        """Training positions of a sample, ascending: round robin over its classes in random order, or just any."""
        labelled = np.flatnonzero(truth >= 0)
        if self.positions is None or len(labelled) <= self.positions:
            return labelled
        shuffled = keyed_generator(f"positions/{self.seed}/{identity}").permutation(labelled)
        if not self.balanced:
            return np.sort(shuffled[: self.positions])
        turn = np.empty(len(shuffled), dtype=np.int64)
        for value in np.unique(truth[shuffled]):
            of_class = np.flatnonzero(truth[shuffled] == value)
            turn[of_class] = np.arange(len(of_class))
        return np.sort(shuffled[np.argsort(turn, kind="stable")[: self.positions]])


@dataclass(frozen=True, eq=False)
class Fit:
    """The ridge of one fold: its rows (m, c), their classes y and samples `owner` (m,), and who is tested."""

    ridge: Ridge
    mean: Array
    std: Array
    rows: Array
    y: Array
    owner: Array
    test: Array

    def responses(self, flat: Array) -> Array:
        """(m, c, positions) -> (m, k', positions), standardising and ridge in one affine map."""
        folded = self.ridge.weights.T / self.std
        return np.asarray(np.matmul(folded, flat) + (self.ridge.bias - folded @ self.mean)[:, None])

    def left_out(self, features: Array, by_response: ByResponse) -> Array:
        """What training without each of n samples would add to a figure, (n,), to first order. features: (n, c, h, w).

        by_response(which are tested, their maps (m, c, h w)): a figure's derivatives by their responses, (m, k', h w).
        """
        return self.sketched(features, by_response, np.empty((0, len(features))))[:, 0]

    def sketched(self, features: Array, by_response: ByResponse, signs: Array) -> Array:
        """The same, and beside it the sketches by signs (r, n) of what each pair of images does (`random_signs`), a row
        for either image of a pair: (n, 1 + r). Of this fold."""
        (c, k), n, r = self.ridge.weights.shape, len(features), len(signs)
        fitted = self.ridge.of_rows((self.rows - self.mean) / self.std, self.y)
        by_weights, by_bias = self.ridge.without(fitted, signs[:, self.owner])
        slope, total = np.zeros((1 + r, c, k)), np.zeros((1 + r, k))
        judged = np.zeros((n, r))
        for tested, flat in held_out(features, self.test):
            each = by_response(tested, flat)
            level = each.sum(axis=2)  # (m, k')
            steep = np.matmul(flat, each.swapaxes(1, 2)) - self.mean[:, None] * level[:, None, :]
            steep = (steep / self.std[:, None]).reshape(len(tested), -1)
            judged[tested] = steep @ by_weights.reshape(r, c * k).T + level @ by_bias.T
            count = np.concatenate([np.ones((1, len(tested))), signs[:, tested]])
            slope += (count @ steep).reshape(slope.shape)
            total += count @ level
        change = self.ridge.influence(fitted, slope, total)
        out = np.stack([np.bincount(self.owner, row, minlength=n) for row in change], axis=1)
        train = np.delete(np.arange(n), self.test)
        out[train, 1:], out[self.test, 1:] = sketches(out[train, 1:]), sketches(judged[self.test])
        return out


def fit_ridge(
    rows: Array, y: Array, alpha: float, owner: Array, test: Array, *, balanced: bool = True
) -> Fit:
    """Ridge onto one-hot targets with standardised columns. rows: (m, c) float32; y: (m,) int."""
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    std[std == 0] = 1
    return Fit(
        one_hot_ridge((rows - mean) / std, y, alpha, balanced=balanced), mean, std, rows, y, owner, test
    )


def held_out(features: Array, test: Array) -> Iterator[tuple[Array, Array]]:
    """Which samples, and their maps (m, c, h w), a chunk at a time."""
    held_out = np.zeros(len(features), dtype=np.bool_)
    held_out[test] = True
    for part, maps in chunks(features):
        tested = np.flatnonzero(held_out[part]) + part.start
        yield tested, maps[held_out[part]].reshape(len(tested), features.shape[1], -1)
