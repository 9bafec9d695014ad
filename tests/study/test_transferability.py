"""Moments, LogME, the H-score and neighbours, against scikit-learn, dense algebra and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from gate.study.h_score import h_score, moments_of_rows
from gate.study.logme import ROUNDS, log_evidence, logme_of_moments, logme_of_rows
from gate.study.moments import Moments, fit_regression, moments_of
from gate.study.neighbours import nearest_classes

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 5, 4, 4)).astype(np.float32) * np.arange(1, 6)[None, :, None, None]
TRUTH = RNG.integers(-1, 3, (6, 16))
TRUTH[:, 0] = 2


def rows(samples: list[int]) -> tuple[np.ndarray, np.ndarray]:
    flat = FEATURES[samples].reshape(len(samples), 5, 16).swapaxes(1, 2).reshape(-1, 5)
    y = TRUTH[samples].ravel()
    return flat[y >= 0].astype(np.float64), y[y >= 0]


def test_moments_add_up_and_unlabelled_rows_count_for_nothing() -> None:
    moments = moments_of(FEATURES, TRUTH, 3)
    x, y = rows([1, 4])
    both = moments.of(np.array([1, 4]))
    assert both.n == len(y)
    assert both.gram == pytest.approx(x.T @ x, rel=1e-5)
    assert both.sums == pytest.approx(x.T @ np.eye(3)[y], rel=1e-5, abs=1e-4)
    rest = moments.of(np.arange(6)).minus(both)
    assert rest.gram == pytest.approx(moments.of(np.array([0, 2, 3, 5])).gram, rel=1e-6)


def test_the_regression_is_scikit_learns_and_its_error_is_the_sum_over_positions() -> None:
    moments = moments_of(FEATURES, TRUTH, 3)
    ours = fit_regression(moments.of(np.arange(4)), alpha=7.0)
    x, y = rows([0, 1, 2, 3])
    mean, std = x.mean(axis=0), x.std(axis=0)
    theirs = Ridge(alpha=7.0).fit((x - mean) / std, np.eye(3)[y])
    held = Moments(moments.gram[4:], moments.sums[4:], moments.counts[4:])
    for i, sample in enumerate((4, 5)):
        z, truth = rows([sample])
        residual = theirs.predict((z - mean) / std) - np.eye(3)[truth]
        assert ours.squared_errors(held)[i] == pytest.approx((residual**2).sum(), rel=1e-4)


def test_a_column_that_does_not_vary_is_left_out() -> None:
    constant = FEATURES.copy()
    constant[:, 2] = 3.0
    moments = moments_of(constant, TRUTH, 3).of(np.arange(6))
    assert np.isfinite(fit_regression(moments, 1.0).weights).all()
    assert fit_regression(moments, 1.0).weights[2] == pytest.approx(0, abs=1e-6)


def test_log_evidence_is_that_of_the_gaussian_and_its_fixed_point_is_the_maximum() -> None:
    n, c = 12, 4
    f = RNG.normal(size=(n, c))
    y = f @ RNG.normal(size=c) + RNG.normal(size=n)
    u, s, _ = np.linalg.svd(f, full_matrices=False)

    def dense(alpha: float, beta: float) -> float:
        covariance = np.eye(n) / beta + f @ f.T / alpha
        return float(multivariate_normal(np.zeros(n), covariance).logpdf(y)) / n

    found = log_evidence(s**2, (u.T @ y) ** 2, float(y @ y), n, c)
    grid = np.exp(np.linspace(-3, 3, 61))
    best = max(dense(a, b) for a in grid for b in grid)
    assert ROUNDS > 1
    assert found == pytest.approx(best, abs=0.003)


def test_logme_prefers_features_that_tell_the_classes_and_is_the_same_from_moments() -> None:
    y = np.arange(60) % 3
    telling = np.eye(3)[y] + 0.1 * RNG.normal(size=(60, 3))
    silent = RNG.normal(size=(60, 3))
    assert logme_of_rows(telling, y) > logme_of_rows(silent, y) + 0.5
    assert logme_of_moments(moments_of_rows(telling, y, 3)) == pytest.approx(
        logme_of_rows(telling, y), abs=1e-6
    )


def test_the_h_score_is_blind_to_linear_maps_and_at_most_classes_less_one() -> None:
    y = np.arange(90) % 3
    x = np.eye(3)[y][:, :2] + 0.3 * RNG.normal(size=(90, 2))
    moved = x @ np.array([[2.0, 1.0], [0.5, -3.0]]) + 5
    plain = h_score(moments_of_rows(x, y, 3), 0.0)
    assert h_score(moments_of_rows(moved, y, 3), 0.0) == pytest.approx(plain)
    exact = np.eye(3)[y][:, :2] + 1e-6 * RNG.normal(size=(90, 2))
    assert plain < h_score(moments_of_rows(exact, y, 3), 0.0) == pytest.approx(2, abs=1e-3)
    assert h_score(moments_of_rows(RNG.normal(size=(9000, 2)), np.arange(9000) % 3, 3), 0.0) < 0.01


def test_neighbours_vote_as_scikit_learns() -> None:
    train, y = RNG.normal(size=(80, 6)), RNG.integers(0, 3, 80)
    test = RNG.normal(size=(40, 6))
    mean, std = train.mean(axis=0), train.std(axis=0)
    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute", weights="distance")
    theirs.fit((train - mean) / std, y)
    assert (nearest_classes(train, y, test, 3) == theirs.predict((test - mean) / std)).all()
