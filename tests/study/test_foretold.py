"""Rules on what they were not fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from gate.errors import ConfigurationError
from gate.study.calibration import Residuals, calibrate
from gate.study.foretold import evaluate_rule, examples_of, least_squares
from gate.study.places import places_of
from gate.study.plan import CellKey
from gate.study.tables import Board, make_board
from tests.study.fabricated_cells import SETTINGS, SHARES, fabricated, planted_cells


@pytest.fixture(scope="module")
def board() -> Board:
    return make_board(places_of(planted_cells(noise=0.02)), SETTINGS)


def test_calibration_holds_as_many_as_asked_and_no_fewer_would_do() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=4000)
    truth = predicted + rng.normal(size=4000) * np.sqrt(0.05**2 + (0.3 * predicted) ** 2)
    found = calibrate(Residuals(predicted, truth, np.zeros(4000)))
    inside = np.abs(truth - predicted) <= found.half_width(predicted, np.zeros(4000)) + 1e-12
    assert inside.mean() == pytest.approx(0.95, abs=0.001)
    assert found.slope == pytest.approx(0.3, abs=0.11)
    assert found.floor == pytest.approx(0.05, abs=0.03)


def test_what_a_draw_of_images_adds_is_not_told_twice() -> None:
    rng = np.random.default_rng(1)
    shares, sampling = rng.normal(size=4000), np.full(4000, 0.1)
    predicted = shares + sampling * rng.normal(size=4000)
    alone = calibrate(Residuals(predicted, shares + 0.1 * rng.normal(size=4000), sampling))
    assert alone.slope == 0 and alone.floor == pytest.approx(0.1, abs=0.01)


def test_a_true_rule_is_covered_on_what_was_left_out(board: Board) -> None:
    found = evaluate_rule(board, n=32, fit=lambda _: {"pixel-brier": 2.0})
    assert 0.85 <= found.coverage[0] <= 1  # 4 % of 128 either way is chance
    assert found.coverage[1] <= found.coverage[0] <= found.coverage[2]
    assert found.spearman[0] > 0.9 and found.regret[0] < 3
    assert found.rmse[0] == pytest.approx(0.04, abs=0.02)  # twice the noise of the quantity


def test_each_timestep_is_told_by_itself() -> None:
    """At t = 50 heads say the opposite of what they say at t = 300, and so does the page."""
    planted = planted_cells()
    opposite = [
        fabricated(CellKey(c.key.domain, 50, c.key.technique), SHARES.get(c.key.technique, 0.0))
        for c in planted
        if c.key.domain != "unnamed"
    ]
    for cell in opposite:
        cell.truth = fabricated(cell.key, -SHARES.get(cell.key.technique, 0.0)).truth
    both = make_board(places_of([*planted, *opposite]), SETTINGS)
    found = evaluate_rule(both, n=32, fit=lambda _: {"pixel-brier": 2.0}).by_timestep
    assert list(found) == ["50", "300"]
    assert found["300"]["spearman"][0] > 0.95 and found["50"]["spearman"][0] < -0.95
    assert found["300"]["coverage"][0] > found["50"]["coverage"][0]
    assert found["300"]["regret"][0] == 0 < found["50"]["regret"][0]


def test_a_fit_finds_the_coefficient_and_beats_a_rule_that_is_wrong(board: Board) -> None:
    made = least_squares(("pixel-brier",))(examples_of(board, 32))
    assert made["pixel-brier"] == pytest.approx(2, abs=0.15)
    fitted = evaluate_rule(board, n=32, fit=least_squares(("pixel-brier",)))
    wrong = evaluate_rule(board, n=32, fit=lambda _: {"pixel-brier": -1.0})
    assert fitted.rmse[0] < wrong.rmse[0] / 3
    assert wrong.spearman[0] < -0.9
    width, ours = (r.calibration.half_width(np.array(0.1), np.zeros(1)) for r in (wrong, fitted))
    assert width > 3 * ours


def test_what_is_left_out_is_not_fitted_on(board: Board) -> None:
    seen: list[set[tuple[str, str]]] = []

    def fit(examples: object) -> object:
        seen.append({(e.task, e.family) for e in examples})  # type: ignore[attr-defined]
        return {"eps": 1.0}

    evaluate_rule(board, n=32, fit=fit)  # type: ignore[arg-type]
    tasks, families = {"classification", "classification-mlp"}, {"held-out", "sketches", "cluttered"}
    wanted = [{(t, f) for t in tasks - {a} for f in families - {b}} for a in tasks for b in families]
    assert all(w in seen for w in wanted)
    assert len(seen) == len(wanted) + 1  # the last is of everything, to ship


def test_examples_are_every_technique_task_place_and_draw(board: Board) -> None:
    found = examples_of(board, 32)
    assert len(found) == len(SHARES) * 2 * 4 * 4
    one = next(e for e in found if e.technique == "prompt" and e.domain == "unnamed")
    assert one.share == pytest.approx(SHARES["prompt"] / 2, abs=0.01) and one.family == "held-out"


def test_one_domain_is_not_enough() -> None:
    held = [c for c in planted_cells() if c.key.domain in ("held-out", "unnamed")]
    with pytest.raises(ConfigurationError, match="two of each"):
        evaluate_rule(make_board(places_of(held), SETTINGS), n=32, fit=lambda _: {"eps": 1.0})
