"""How far the truth's own noise lets anybody come."""

from __future__ import annotations

import numpy as np

from gate.probe import label_counts
from gate.study.analysis import analyse, board_of
from gate.study.ceiling import ceilings
from gate.study.page import page_of
from gate.study.places import places_of
from gate.study.tables import make_board
from gate.tasks import find_task
from tests.study.fabricated_cells import SETTINGS, TESTED, VANILLA_ERROR, planted_cells


def test_a_truth_without_noise_repeats_itself() -> None:
    found = ceilings(make_board(places_of(planted_cells()), SETTINGS), splits=5)
    assert set(found) == {"pooled", "classification", "classification-mlp"}
    for subset in ("all", "without leaks"):
        assert found["pooled"][subset]["halves"]["value"] > 0.97
        assert found["pooled"][subset]["most"]["value"] > 0.98


def test_equal_techniques_are_ordered_by_chance_and_nobody_can_foretell_it() -> None:
    rng, cells = np.random.default_rng(0), planted_cells(unnamed=False)
    accuracy, labels = find_task("classification").measures[0], np.arange(TESTED) % 2
    for cell in cells:
        right = rng.random(TESTED) > VANILLA_ERROR  # a coin for each image
        counts = label_counts(labels, np.where(right, labels, 1 - labels), 2)
        columns = accuracy.columns(counts[:, None])[:, 0]
        cell.truth = {task: np.stack([columns] * 2) for task in cell.truth}
    found = ceilings(make_board(places_of(cells), SETTINGS), splits=10)["pooled"]["all"]
    assert abs(found["halves"]["value"]) < 0.35
    assert found["most"]["value"] < 0.65
    assert found["halves"]["low"] <= found["halves"]["value"] <= found["halves"]["high"]


def test_the_page_tells_it() -> None:
    cells = planted_cells(noise=0.01)
    results = analyse(cells, SETTINGS, board_of(cells, SETTINGS), resamples=3)
    most = results["ceiling"]["pooled"]["all"]["most"]["value"]
    assert f"would reach about {most:.2f} [" in page_of(results)
