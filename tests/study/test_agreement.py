"""Agreement of orders, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gate.study import agreement


def test_correlations_are_scipys_with_ties_and_for_many_at_once() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 6, (3, 4, 12)).astype(float), rng.normal(size=12)
    ours = agreement.spearman(predicted, truth), agreement.kendall(predicted, truth)
    for i in np.ndindex(3, 4):
        assert ours[0][i] == pytest.approx(stats.spearmanr(predicted[i], truth).statistic)
        assert ours[1][i] == pytest.approx(stats.kendalltau(predicted[i], truth).statistic)


def test_an_order_that_does_not_vary_agrees_with_nothing() -> None:
    assert agreement.spearman(np.zeros((1, 5)), np.arange(5.0))[0] == 0
    assert agreement.kendall(np.zeros((1, 5)), np.arange(5.0))[0] == 0


def test_regret_is_what_the_choice_loses_and_vanilla_can_be_chosen() -> None:
    points = np.array([3.0, -2.0, 1.0])
    predicted = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -2, -3]])
    assert agreement.top1_regret(predicted, points).tolist() == [0, 5, 2, 3]
    assert agreement.top1_regret(np.array([-1.0, -1, -1]), -np.abs(points)) == 0  # nothing is worth having


def test_recall_counts_the_true_top_three() -> None:
    truth = np.array([5.0, 4, 3, 2, 1, 0])
    predicted = np.array([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [5, 0, 0, 4, 3, 0]])
    assert agreement.top3_recall(predicted, truth).tolist() == pytest.approx([1, 0, 1 / 3])
    assert agreement.best_in_top3(predicted, truth).tolist() == [1, 0, 1]


def test_signs_count_where_they_are_settled_alone() -> None:
    sign = np.array([1.0, -1, 0, 1])
    assert agreement.signs_right(np.array([0.1, -0.1, -9, -0.1]), sign) == pytest.approx(2 / 3)
    assert np.isnan(agreement.signs_right(np.zeros(4), np.zeros(4)))


def test_stability_is_the_mean_correlation_of_pairs_of_draws() -> None:
    a, b, c = np.arange(6.0), np.arange(6.0)[::-1], np.array([0.0, 2, 1, 3, 5, 4])
    pairs = [(a, b), (a, c), (b, c)]
    wanted = np.mean([stats.spearmanr(x, y).statistic for x, y in pairs])
    assert agreement.stability(np.stack([a, b, c])) == pytest.approx(wanted)
    assert np.isnan(agreement.stability(a[None]))
