"""How far the linear reading of each position is from its mask class: a squared error, no decision."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gate.measure import Direction, Figure
from gate.probe import Folds, brier_error, random_signs, require_truth
from gate.probes.pixel_linear import Fit, PixelLinear, held_out
from gate.sample import SampleSet

Array = npt.NDArray[Any]


class PixelBrier(PixelLinear):
    """Ridge regression onto one-hot mask classes, rows weighing equally, judged by its squared error at every position.

    A decision by the highest response throws away all but one bit, and a mean over classes lets the rarest speak as
    loud as the rest: mIoU of a small probe is mostly noise. The error of the responses themselves adds up over
    positions and needs no decision. Training positions are drawn as they come.
    alpha, positions, seed: as `pixel-linear` takes them.
    """

    name = "pixel-brier"
    summary = (
        "Squared error of a linear reading of the mask at every position (Brier score of ridge regression)"
    )
    source = "Brier 1950 (Monthly Weather Review 78:1); ridge in closed form, on label-scarce segmentation's features"
    needs = "masks"
    figure: ClassVar[Figure | Literal[""]] = ""
    direction: ClassVar[Direction] = "lower"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    balanced: ClassVar[bool] = False

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> Array:
        """(n, 3): squared error summed over labelled positions, their number, and the error of the training fold's
        class shares there, which is what a reader of nothing would make."""
        return self._errors(features, samples, folds)[0]

    def judge(self, features: Array, samples: SampleSet, folds: Folds) -> tuple[Array, Array]:
        columns, truth, fits = self._errors(features, samples, folds)
        signs = random_signs(samples, folds)
        change = np.zeros((len(features), 1 + len(signs)))
        for fit in fits:

            def by_response(tested: Array, flat: Array, fit: Fit = fit) -> Array:
                return 2 * self._residual(fit, flat, truth[tested])

            change += fit.sketched(features, by_response, signs)
        return columns, change / max(1.0, columns[:, 1].sum())

    def error_of_sums(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        return brier_error(sums)

    def blind_error(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        return brier_error(sums[..., [2, 1]])

    def _errors(
        self, features: Array, samples: SampleSet, folds: Folds
    ) -> tuple[npt.NDArray[np.float64], Array, list[Fit]]:
        k = require_truth(samples, features, folds, "masks")
        truth, fits = self.fits(features, samples, folds, k)
        known = truth >= 0
        positions = known.sum(axis=1)
        # without a labelled row to learn from, every response is 0: an error of 1 a position
        columns = np.stack([positions, positions, positions], axis=1).astype(np.float64)
        for fit in fits:
            shares = np.bincount(fit.y, minlength=k) / len(fit.y)
            by_class = (shares**2).sum() - 2 * shares + 1  # ||shares - e(y)||^2
            columns[fit.test, 2] = (by_class[np.maximum(truth[fit.test], 0)] * known[fit.test]).sum(axis=1)
            for tested, flat in held_out(features, fit.test):
                error = (self._residual(fit, flat, truth[tested]) ** 2).sum(axis=(1, 2))
                unseen = known[tested] & ~np.isin(truth[tested], fit.ridge.present)  # their response is 0
                columns[tested, 0] = error + unseen.sum(axis=1)
        return columns, truth, fits

    @staticmethod
    def _residual(fit: Fit, flat: Array, truth: Array) -> Array:
        """Responses minus one-hot truth, 0 where nothing is labelled. flat: (m, c, p), truth: (m, p) -> (m, k', p)."""
        one_hot = truth[:, None, :] == fit.ridge.present[:, None]
        return np.asarray((fit.responses(flat) - one_hot) * (truth >= 0)[:, None, :])
