"""DCI and TAD: their limits, scikit-learn's AUROC, and what one channel per class looks like."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from gate.backbone import Backbone
from gate.errors import ConfigurationError
from gate.metrics.dci import ALPHA, CHANNELS, Dci, disentanglement, ridge_importance
from gate.metrics.tad import Tad, auroc_difference, separations
from gate.testing import check_metric


def planted(n: int = 64, k: int = 8, mixed: bool = False) -> np.ndarray:
    """(n, CHANNELS + 1): channel j speaks of class j, or every one of the first k of all classes; then the label."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % k
    codes = 0.1 * rng.standard_normal((n, CHANNELS))
    one_hot = np.eye(k)[labels]
    turn = np.linalg.qr(rng.standard_normal((k, k)))[0] if mixed else np.eye(k)
    codes[:, :k] += one_hot @ turn
    codes[:, k:] = 0
    return np.concatenate([codes, labels[:, None]], axis=1)


def test_a_one_hot_importance_is_1_and_a_uniform_one_0() -> None:
    assert disentanglement(np.eye(4)[[0, 1, 2, 3, 3]]) == pytest.approx(1)
    assert disentanglement(np.ones((5, 4))) == pytest.approx(0, abs=1e-12)
    assert disentanglement(np.zeros((5, 4))) == 0
    assert disentanglement(np.array([[1.0, 0], [0, 0], [1, 1]])) == pytest.approx(1 / 3)
    assert disentanglement(np.ones((5, 1)) @ np.ones((1, 4)) * 1e9) == pytest.approx(0, abs=1e-12)


def test_importance_is_that_of_scikit_learns_ridge_and_weights_are_repeats() -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((30, 5)), rng.integers(0, 3, 30)
    z = (x - x.mean(0)) / x.std(0)
    times = rng.integers(0, 4, 30)
    drawn = np.repeat(np.arange(30), times)
    ridge = Ridge(alpha=ALPHA * len(drawn)).fit(z[drawn], np.eye(3)[labels[drawn]])
    np.testing.assert_allclose(
        ridge_importance(x, labels, times.astype(float)[None])[0], np.square(ridge.coef_.T), atol=1e-10
    )


def test_separations_are_scikit_learns_auroc_ties_and_repeats_included() -> None:
    rng = np.random.default_rng(2)
    x, labels = rng.integers(0, 5, (40, 3)).astype(float), rng.integers(0, 3, 40)
    times = rng.integers(0, 3, 40)
    found = separations(x, labels, times.astype(float)[None])[0]
    drawn = np.repeat(np.arange(40), times)
    for j in range(3):
        for k in range(3):
            auc = roc_auc_score(labels[drawn] == k, x[drawn, j])
            assert found[j, k] == pytest.approx(max(auc, 1 - auc))
    assert (separations(x, np.zeros(40, int), np.ones((1, 40))) == 0.5).all()


def test_auroc_difference_counts_captured_classes_alone() -> None:
    separation = np.array([[1.0, 0.7, 0.8], [0.6, 0.5, 0.8], [0.5, 0.5, 0.5]])  # gaps 0.4; not captured; 0
    assert auroc_difference(separation, np.array([True] * 3)) == pytest.approx(0.4 / 3)
    assert auroc_difference(separation, np.array([True, False, True])) == pytest.approx(0.2)
    best = np.where(np.eye(3) > 0, 1.0, 0.5)
    assert auroc_difference(best, np.array([True] * 3)) == 0.5


@pytest.mark.parametrize("cls", [Dci, Tad])
def test_a_channel_for_each_class_beats_the_same_information_mixed(cls: type) -> None:
    metric = cls()
    every = np.ones((1, 64))
    apart, mixed = (float(metric.error_of_set(planted(mixed=m), every)[0]) for m in (False, True))
    assert apart < mixed - 0.1
    none = float(metric.error_of_set(np.where(np.arange(CHANNELS + 1) < CHANNELS, 0, planted()), every)[0])
    assert none == metric.best  # no importance, nothing captured


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Dci, pytest.param(Tad, marks=pytest.mark.slow)])
def test_they_keep_the_contract(cls: type, tiny: Backbone) -> None:
    report = check_metric(cls, tiny)
    assert report.ok, str(report)


def test_images_without_labels_are_refused_in_a_sentence_and_left_out_of_all(tiny: Backbone) -> None:
    from gate.sample import Sample, SampleSet
    from gate.screening.bench import _served

    rng = np.random.default_rng(0)
    plain = SampleSet(
        tuple(Sample(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)), name="plain"
    )
    with pytest.raises(ConfigurationError, match="metric dci needs labels, and plain has none"):
        _served(Dci(), tiny, plain, False, print)
    lines: list[str] = []
    assert not _served(Dci(), tiny, plain, True, lines.append)
    assert lines == ["metric dci is left out: plain has no labels"]
