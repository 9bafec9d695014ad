"""Whether a probe reads anything: beside guesses as frequent as its own that never saw the features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gate.probe import Probe, label_counts
from gate.ranking.chance import beats_chance, says_something
from gate.ranking.entry import Evidence
from gate.registry import select_plugins

LINEAR, PIXEL, KNN = (select_plugins("probe", (name,))[0] for name in ("linear", "pixel-linear", "knn"))


def guesses(truth: np.ndarray[Any, Any], right: float, rng: np.random.Generator, k: int = 4) -> Any:
    """Counts (n, 1, k, k) of predictions that know the truth in `right` of the samples and guess in the rest."""
    known = rng.random(len(truth)) < right
    return label_counts(truth, np.where(known, truth, rng.integers(0, k, len(truth))), k)[:, None]


def test_of_blind_probes_few_beat_chance_and_of_good_ones_all_do() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(32) % 4
    blind = [beats_chance(LINEAR, guesses(truth, 0.0, rng), seed=0, resamples=300) for _ in range(100)]
    seeing = [beats_chance(LINEAR, guesses(truth, 0.6, rng), seed=0, resamples=300) for _ in range(20)]
    assert np.mean(blind) <= 0.08 and all(seeing)


def test_one_class_for_all_is_chance_however_often_it_is_right() -> None:
    truth = np.array([0] * 28 + [1] * 4)
    assert not beats_chance(LINEAR, label_counts(truth, np.zeros(32, int), 2)[:, None], seed=0)


def test_one_image_a_class_is_never_right() -> None:
    truth = np.arange(16)
    assert not beats_chance(LINEAR, label_counts(truth, (truth + 1) % 16, 16)[:, None], seed=0)


def test_masks_that_are_read_and_masks_that_are_not() -> None:
    rng = np.random.default_rng(1)
    blind = rng.multinomial(64, [0.7, 0.2, 0.07, 0.03], size=(32, 1)).astype(np.int64)  # what is guessed
    rows = np.stack([blind * share // 100 for share in (70, 20, 10)], axis=2)  # the same whatever the truth
    assert not beats_chance(PIXEL, np.concatenate([rows, rows[:, :, :1]], axis=2), seed=0)
    eye = np.eye(4, dtype=np.int64) * 6
    assert beats_chance(PIXEL, np.concatenate([rows, rows[:, :, :1]], axis=2) + eye, seed=0)


def test_a_technique_that_is_read_makes_the_probe_speak() -> None:
    rng = np.random.default_rng(2)
    truth = np.arange(32) % 4
    none, all_ = (Evidence({}, {"linear": guesses(truth, right, rng)}) for right in (0.0, 0.9))
    settings = {"seed": 0, "resamples": 1000}
    assert says_something(LINEAR, none, {"good": all_, "bad": none}, **settings)
    assert says_something(LINEAR, all_, {"bad": none}, **settings)
    assert not says_something(LINEAR, none, {"bad": none, "worse": none}, **settings)


def test_a_probe_without_a_figure_states_no_chance() -> None:
    class Own(Probe):
        name, summary, source, needs, figure = "own", "s", "s", "", ""

        def evaluate(self, features: Any, samples: Any, folds: Any) -> Any: ...

    assert beats_chance(Own(), np.zeros((8, 1)), seed=0)


@pytest.mark.parametrize("probe", [LINEAR, KNN, PIXEL])
def test_all_right_beats_chance(probe: Probe) -> None:
    truth = np.arange(16) % 4
    assert beats_chance(probe, label_counts(truth, truth, 4)[:, None], seed=0)
