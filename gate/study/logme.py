"""LogME: the logarithm of maximum evidence of a linear model on features (You et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gate.study.moments import Moments

Array = npt.NDArray[Any]
ROUNDS, CLOSE = 100, 1e-3


def logme_of_rows(rows: Array, y: Array) -> float:
    """LogME of features for class labels. rows: (n, c); y: (n,) int. Higher is better; see `log_evidence`."""
    present, index = np.unique(y, return_inverse=True)
    one_hot = np.eye(len(present))[index]
    x = rows.astype(np.float64)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    inside = (u.T @ one_hot) ** 2  # (r, k)
    return _mean_evidence(s**2, inside, one_hot.sum(axis=0), len(x), x.shape[1])


def logme_of_moments(moments: Moments) -> float:
    """The same of summed moments: eigenvectors of F^T F stand for the right singular vectors of F."""
    present = moments.counts > 0
    values, vectors = np.linalg.eigh(moments.gram)
    values = np.maximum(values, 0)
    keep = values > 1e-9 * values.max()
    inside = (vectors[:, keep].T @ moments.sums[:, present]) ** 2 / values[keep][:, None]
    n, c = moments.n, len(values)
    return _mean_evidence(values[keep], inside, moments.counts[present], n, c)


def _mean_evidence(sigma: Array, inside: Array, squares: Array, n: float, c: int) -> float:
    """Mean over classes. sigma: (r,) eigenvalues of F^T F; inside: (r, k), squared projections of the targets on the
    left singular vectors; squares: (k,), ||y||^2."""
    found = [log_evidence(sigma, inside[:, k], squares[k], n, c) for k in range(inside.shape[1])]
    return float(np.mean(found))


def log_evidence(sigma: Array, inside: Array, square: float, n: float, c: int) -> float:
    """Highest log evidence per row of y ~ N(F w, 1/beta), w ~ N(0, 1/alpha) (Eq. 2 of You et al. 2021).

    alpha and beta by MacKay's fixed point, which the paper's Algorithm 1 runs: gamma = sum beta s / (alpha + beta s),
    alpha = gamma / m^T m, beta = (n - gamma) / ||F m - y||^2. sigma: (r,), s; inside: (r,), squared projections of y
    on the left singular vectors of F; square: y^T y.
    """
    outside = max(square - float(inside.sum()), 0.0)
    alpha = beta = 1.0
    for _ in range(ROUNDS):
        ratio = alpha / beta
        gamma = float((sigma / (sigma + ratio)).sum())
        norm = float((sigma * inside / (ratio + sigma) ** 2).sum())
        residual = float((inside * (ratio / (ratio + sigma)) ** 2).sum()) + outside
        alpha, beta = gamma / max(norm, 1e-12), (n - gamma) / max(residual, 1e-12)
        if abs(alpha / beta - ratio) <= CLOSE * ratio:
            break
    ratio = alpha / beta
    norm = float((sigma * inside / (ratio + sigma) ** 2).sum())
    residual = float((inside * (ratio / (ratio + sigma)) ** 2).sum()) + outside
    log_det = float(np.log(alpha + beta * sigma).sum()) + (c - len(sigma)) * np.log(alpha)
    evidence = c / 2 * np.log(alpha) + n / 2 * np.log(beta) - beta / 2 * residual - alpha / 2 * norm
    return float((evidence - log_det / 2 - n / 2 * np.log(2 * np.pi)) / n)
