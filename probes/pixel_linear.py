"""Which class each position shows, read linearly from its feature vector."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.probe import Folds, Probe, chunks, grid_mask, map_counts, require_truth
from gate.ridge import balanced_ridge
from gate.sample import SampleSet

Array = npt.NDArray[Any]
ALPHA = 1000.0  # positions of one image resemble each other: they teach less than their number says
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
    figure = "miou"

    def __init__(self, *, alpha: float = ALPHA, positions: int | None = POSITIONS, seed: int = 0) -> None:
        self.alpha, self.positions, self.seed = alpha, positions, seed
        self._known: tuple[SampleSet, tuple[int, int], Array, list[Array]] | None = None

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        k = require_truth(samples, features, folds, "masks")
        n, c, h, w = features.shape
        truth, chosen = self._truth(samples, (h, w), k)
        rows = [
            feature.reshape(c, h * w)[:, at].T
            for part, maps in chunks(features)
            for feature, at in zip(maps, chosen[part], strict=True)
        ]
        predicted = np.zeros_like(truth)
        for train, test in folds:
            y = np.concatenate([truth[i][chosen[i]] for i in train])
            if len(y) == 0:
                continue  # nothing labelled to learn from: class 0 everywhere
            weights, bias, present = fit_ridge(np.concatenate([rows[i] for i in train]), y, self.alpha)
            held_out = np.zeros(n, dtype=np.bool_)
            held_out[test] = True
            for part, maps in chunks(features):
                tested = np.arange(n)[part][held_out[part]]
                flat = maps[held_out[part]].reshape(len(tested), c, h * w)
                response = np.matmul(weights, flat) + bias[:, None]  # (m, k', h w)
                predicted[tested] = present[response.argmax(axis=1)]
        return map_counts(truth, predicted, k)

    def _truth(self, samples: SampleSet, grid: tuple[int, int], k: int) -> tuple[Array, list[Array]]:
        """Classes of all positions, (n, h w), and the training positions of each sample: one set for all techniques."""
        known = self._known
        if known is None or known[0] is not samples or known[1] != grid:
            truth = np.stack([grid_mask(s.mask, grid, k).ravel() for s in samples if s.mask is not None])
            chosen = [self._choose(row, s.id) for row, s in zip(truth, samples, strict=True)]
            self._known = known = samples, grid, truth, chosen
        return known[2], known[3]

    def _choose(self, truth: Array, identity: str) -> Array:
        """Training positions of a sample, ascending: round robin over its classes, each in random order."""
        labelled = np.flatnonzero(truth >= 0)
        if self.positions is None or len(labelled) <= self.positions:
            return labelled
        digest = hashlib.blake2b(f"positions/{self.seed}/{identity}".encode(), digest_size=8).digest()
        shuffled = np.random.default_rng(int.from_bytes(digest, "big")).permutation(labelled)
        turn = np.empty(len(shuffled), dtype=np.int64)
        for value in np.unique(truth[shuffled]):
            of_class = np.flatnonzero(truth[shuffled] == value)
            turn[of_class] = np.arange(len(of_class))
        return np.sort(shuffled[np.argsort(turn, kind="stable")[: self.positions]])


def fit_ridge(rows: Array, y: Array, alpha: float) -> tuple[Array, Array, Array]:
    """Ridge onto one-hot targets with balanced classes and standardised columns, folded into one affine map.

    rows: (m, c) float32; y: (m,) int. Returns weights (k', c) and bias (k',) float32 for raw rows, and the k'
    classes that occur (k',).
    """
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    std[std == 0] = 1
    weights, bias, present = balanced_ridge((rows - mean) / std, y, alpha)
    folded = weights.T / std
    return folded, bias - folded @ mean, present
