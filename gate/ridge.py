"""Ridge regression in closed form: what linear probes fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLUR = (
    0.4  # where the spread of refits on independent scenes is met, n = 16 ... 128: python -m tests.coverage
)


def moments(rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, (c,) each; a column that does not vary has 1."""
    mean, std = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    std[std <= 10 * np.finfo(rows.dtype).eps * np.abs(mean)] = 1
    std[std == 0] = 1
    return mean.astype(rows.dtype), std.astype(rows.dtype)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted ridge: `rows @ weights + bias` are the responses of the k' classes `present`.

    weights: (c, k'). bias, present: (k',). The rest is what `influence` needs again.
    """

    weights: Array
    bias: Array
    present: Array
    centre: Array
    level: Array
    root: Array
    factor: tuple[Array, bool]

    def influence(self, fitted: tuple[Array, Array], slope: Array, total: Array) -> Array:
        """What leaving out each training row would add to figures, to first order (infinitesimal jackknife), (r, m).

        fitted: what `of_rows` makes of them. slope (r, c, k'), total (r, k'): each figure's derivatives by weights and
        bias. Class weights and standardisation stay as they are.
        """
        from scipy.linalg import cho_solve

        x, off = fitted
        centred = (slope - self.centre[:, None] * total[:, None, :]).astype(x.dtype)
        flat = centred.swapaxes(0, 1).reshape(x.shape[1], -1)  # all figures' columns at once: (c, r k')
        if len(self.factor[0]) == x.shape[1]:
            effect = x @ cho_solve(self.factor, flat, check_finite=False)
        else:
            effect = cho_solve(self.factor, x @ flat, check_finite=False)
        effect = effect.reshape(len(x), *total.shape) + self.root[:, None] * (total / (self.root**2).sum())
        return -np.asarray(np.einsum("mrk,mk->rm", effect, off))

    def without(self, fitted: tuple[Array, Array], shares: Array) -> tuple[Array, Array]:
        """What leaving out a share of each row, (r, m), would add to the weights, (r, c, k'), and to the bias, (r, k'),
        to first order: the same as `influence`, the other way round."""
        from scipy.linalg import cho_solve

        x, off = fitted
        moved = -shares.T[:, :, None].astype(x.dtype) * off[:, None, :]  # (m, r, k')
        flat = moved.reshape(len(x), -1)
        if len(self.factor[0]) == x.shape[1]:
            weights = cho_solve(self.factor, x.T @ flat, check_finite=False)
        else:
            weights = x.T @ cho_solve(self.factor, flat, check_finite=False)
        weights = weights.reshape(x.shape[1], *moved.shape[1:]).swapaxes(0, 1)
        bias = np.einsum("m,mrk->rk", self.root[:, 0], moved) / (self.root**2).sum() - self.centre @ weights
        return weights, bias

    def of_rows(self, rows: Array, y: Array) -> tuple[Array, Array]:
        """The rows of the fit as they entered it, (m, c), and how far their targets are from it, (m, k')."""
        x = (rows - self.centre) * self.root
        one_hot = np.eye(len(self.present), dtype=rows.dtype)[np.searchsorted(self.present, y)]
        return x, (one_hot - self.level) * self.root - x @ self.weights


def one_hot_ridge(rows: Array, y: Array, alpha: float, *, balanced: bool) -> Ridge:
    """Ridge regression onto one-hot classes in closed form. balanced: classes weigh equally, else rows do.

    Minimises sum_i w_i ||x_i W + b - e(y_i)||^2 + alpha ||W||^2 with w_i = m / (k' count(y_i)), or 1. That is what
    scikit-learn's Ridge and RidgeClassifier solve (under "balanced" weights), where checks take most of the time.
    Solved through the smaller of the two Gram matrices. rows: (m, c) float32, standardised; y: (m,) int.
    """
    from scipy.linalg import cho_factor, cho_solve

    present, index, count = np.unique(y, return_inverse=True, return_counts=True)
    equal = len(y) / (len(present) * count) if balanced else np.ones(len(present))
    weight = equal[index].astype(rows.dtype)
    targets = np.eye(len(present), dtype=rows.dtype)[index]
    centre, level = (np.average(x, axis=0, weights=weight).astype(rows.dtype) for x in (rows, targets))
    root = np.sqrt(weight)[:, None]
    x, t = (rows - centre) * root, (targets - level) * root
    m, c = x.shape
    gram = x.T @ x if c <= m else x @ x.T
    gram.flat[:: len(gram) + 1] += alpha
    factor = cho_factor(gram, overwrite_a=True, check_finite=False)
    if c <= m:
        weights = cho_solve(factor, x.T @ t, check_finite=False)
    else:
        weights = x.T @ cho_solve(factor, t, check_finite=False)
    return Ridge(weights, level - centre @ weights, present, centre, level, root, factor)


def blurred(response: Array, slope: Array, blur: float) -> Array:
    """Derivative by the responses of what a decision by the highest one adds to a figure, the decision blurred.

    A hard decision has no derivative, and leaving out one image flips a few positions by chance, which an exact
    jackknife takes for spread (measured: four times too much). So the highest response wins with a softmax whose width
    is `blur` times the responses' spread over classes. response, slope: (b, k', p), the slope what each decision adds.
    """
    width = blur * response.std(axis=1, keepdims=True).mean(axis=2, keepdims=True)
    width = np.where(width > 0, width, np.inf)  # equal responses: nothing can flip
    share = np.exp((response - response.max(axis=1, keepdims=True)) / width)
    share /= share.sum(axis=1, keepdims=True)
    return np.asarray(
        share * (slope - (share * slope).sum(axis=1, keepdims=True)) / width, dtype=response.dtype
    )
