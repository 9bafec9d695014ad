from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from gate.measure import confusion_error, confusion_margins, confusion_slope
from gate.tasks import create_task
from gate.tasks.figures import CLASSIFICATION, CORRESPONDENCE, SEGMENTATION
from gate.tasks.result import rows_of


def test_segmentation_and_classification_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 4, (10, 50)), rng.integers(0, 4, (10, 50))
    guess = np.where(rng.random(true.shape) < 0.5, true, guess)
    counts = np.stack(
        [metrics.confusion_matrix(t, g, labels=range(4)) for t, g in zip(true, guess, strict=True)]
    )
    task = create_task("segmentation")
    wanted = {
        "miou": metrics.jaccard_score(true.ravel(), guess.ravel(), average="macro"),
        "aacc": metrics.accuracy_score(true.ravel(), guess.ravel()),
        "macc": metrics.balanced_accuracy_score(true.ravel(), guess.ravel()),
    }
    for i, measure in enumerate(SEGMENTATION):
        assert task.figure(counts, i) == pytest.approx(wanted[measure.name])
    for i, measure in enumerate(CLASSIFICATION):
        name = {"accuracy": "aacc", "balanced-accuracy": "macc"}[measure.name]
        assert create_task("classification").figure(counts, i) == pytest.approx(wanted[name])


def test_the_slope_of_accuracy_is_its_derivative() -> None:
    counts = np.random.default_rng(1).integers(1, 9, (3, 3)).astype(float)
    slope = confusion_slope(counts, "accuracy")
    moved = counts.copy()
    moved[1, 1] += 1e-4
    moved[1, 0] -= 1e-4  # another prediction, the same truth
    change = confusion_error(confusion_margins(moved), "accuracy") - confusion_error(
        confusion_margins(counts), "accuracy"
    )
    assert change == pytest.approx(1e-4 * (slope[1, 1] - slope[1, 0]), rel=1e-6)


def test_pck_counts_points_or_pairs_by_hand() -> None:
    counts = np.array([[4, 4, 1], [1, 0, 0], [0, 0, 0]])  # points, within a tenth of the image, of the box
    by_image, by_box, by_pair = (
        m.number(float(m.errors(m.columns(counts[:, None]), np.ones(3))[0])) for m in CORRESPONDENCE
    )
    assert by_image == pytest.approx(4 / 5) and by_box == pytest.approx(1 / 5)
    assert by_pair == pytest.approx((1 / 4 + 0) / 2)  # a pair without points is no pair


def test_every_measure_states_its_facts() -> None:
    for measure in (*SEGMENTATION, *CLASSIFICATION, *CORRESPONDENCE):
        assert measure.name and measure.summary and measure.direction == "higher" and measure.range == (0, 1)


def test_rows_hold_the_mean_over_seeds_and_a_paired_gain() -> None:
    rng = np.random.default_rng(0)
    plain = np.zeros((2, 40, 2, 2), int)
    right = rng.random((2, 40)) < 0.6
    plain[:, :, 0, 0], plain[:, :, 0, 1] = right, ~right
    better = plain.copy()
    wrong = np.flatnonzero(~right[0])[:5]
    better[0, wrong, 0, 0], better[0, wrong, 0, 1] = 1, 0
    rows = rows_of(
        create_task("classification"), {"vanilla": plain, "t": better}, vanilla="vanilla", resamples=500
    )
    first = next(r for r in rows if r.arm == "t" and r.primary)
    base = next(r for r in rows if r.arm == "vanilla" and r.primary)
    assert base.gain is None and base.value.value == pytest.approx(100 * right.mean())
    assert base.spread == pytest.approx(100 * right.mean(axis=1).std(ddof=1))
    assert first.gain is not None and first.gain.value == pytest.approx(100 * 5 / 80) and first.gain.n == 40
    assert first.gain.low > 0  # five images better, none worse
    assert first.gain.high - first.gain.low < base.value.high - base.value.low
