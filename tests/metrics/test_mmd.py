"""MMD: zero for equal sets, its kernel's limits, and what resamples do to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gate.metrics.mmd import DIMENSIONS, Mmd, kernel, squared_mmd
from gate.testing import check_metric


def rows(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def test_a_set_has_no_distance_to_itself_in_whatever_order() -> None:
    x, ones = rows(20), np.ones(20)
    assert squared_mmd(x, x, ones) == pytest.approx(0, abs=1e-15)
    assert squared_mmd(x, x[::-1], ones) == pytest.approx(0, abs=1e-15)


def test_it_is_the_v_statistic_summed_term_by_term() -> None:
    x, y = rows(7), rows(7, seed=1) + 1
    weights = np.arange(1.0, 8)
    share, d = weights / weights.sum(), x.shape[1]

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.mean((a - b) ** 2) / d))

    expected = sum(
        share[i] * share[j] * (k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j]))
        for i in range(7)
        for j in range(7)
    )
    assert squared_mmd(x, y, weights) == pytest.approx(expected, rel=1e-10)
    assert kernel(x, x).diagonal().tolist() == [1.0] * 7


def test_it_grows_with_the_shift_and_ends_at_2_for_points_far_apart() -> None:
    x = rows(16)
    found = [float(squared_mmd(x + shift, x, np.ones(16))) for shift in (0, 0.5, 1, 2)]
    assert found == sorted(found) and found[0] == pytest.approx(0, abs=1e-15)
    far = np.tile([[1e3]], (4, 6))
    assert squared_mmd(far, -far, np.ones(4)) == pytest.approx(2)


def test_a_resample_is_the_set_of_the_rows_it_draws() -> None:
    f, reference = (torch.randn(12, 5, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    metric = Mmd()
    columns = metric.columns(metric.rows(metric.shift(f, reference), 12)[:, None])
    assert columns.shape == (12, 1, 2 * DIMENSIONS)
    drawn = np.zeros((1, 12))
    drawn[0, [1, 4]] = 3, 2
    picked = [1, 1, 1, 4, 4]
    mean, std = columns[:, 0, DIMENSIONS:].mean(0), columns[:, 0, DIMENSIONS:].std(0)
    made, real = (
        (columns[picked, 0][:, part] - mean) / std for part in (slice(DIMENSIONS), slice(DIMENSIONS, None))
    )
    assert metric.errors(columns, drawn)[0, 0] == pytest.approx(float(squared_mmd(made, real, np.ones(5))))


def test_it_keeps_the_contract() -> None:
    report = check_metric(Mmd)
    assert report.ok, str(report)
