"""From cells to figures, where the truth is planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gate.errors import ConfigurationError
from gate.runs.directory import plain
from gate.study.analysis import analyse, board_of
from gate.study.cell import file_of, load_cell, save_cell
from gate.study.costs import cost_ratios
from gate.study.gains import gains, truth_of_place
from gate.study.page import page_of
from gate.study.places import SEARCHED, places_of
from gate.study.plan import CellKey, draws_of
from gate.study.tables import Board, make_board, stabilities, tabulate
from tests.study.fabricated_cells import LEAKS, SETTINGS, SHARES, VANILLA_ERROR, fabricated, planted_cells


@pytest.fixture(scope="module")
def board() -> Board:
    return make_board(places_of(planted_cells(noise=0.01)), SETTINGS)


def test_a_domain_of_other_captions_takes_the_rest_from_its_base() -> None:
    cells = [*planted_cells(), fabricated(CellKey("searched", 300, "prompt"), 0.05)]
    places = {place.domain: place for place in places_of(cells)}
    assert set(places["unnamed"].cells) == set(SHARES)
    assert places["unnamed"].family == "held-out"
    assert places["unnamed"].cells["lora"] is places["held-out"].cells["lora"]
    assert places["unnamed"].cells["prompt"] is not places["held-out"].cells["prompt"]
    assert places["held-out"].cells[SEARCHED] is places["searched"].cells["prompt"]


def test_a_place_without_vanilla_or_with_two_techniques_says_nothing() -> None:
    cells = [c for c in planted_cells() if c.key.technique != "vanilla"]
    assert places_of(cells) == []
    with pytest.raises(ConfigurationError, match="No place is ready"):
        board_of(cells, SETTINGS)


def test_truth_is_the_share_that_was_planted_and_signs_are_settled_where_it_is_large() -> None:
    place = places_of(planted_cells())[0]
    truth = truth_of_place(place, "classification")
    assert truth.vanilla == pytest.approx(VANILLA_ERROR)
    assert truth.share == pytest.approx([SHARES[n] for n in place.techniques], abs=0.002)
    assert truth.points == pytest.approx(100 * VANILLA_ERROR * truth.share)
    signs = dict(zip(place.techniques, truth.sign, strict=True))
    assert signs["prompt"] == 1 and signs["shuffled-prompt"] == -1


def test_gains_are_shares_of_the_error_or_differences_and_what_is_unknown_is_nothing() -> None:
    cells = planted_cells()
    cells[1].drawn["logme-images"] = [float("nan")] * len(draws_of(SETTINGS))
    place = next(p for p in places_of(cells) if p.domain == cells[1].key.domain)
    found = gains(place, SETTINGS)
    j = place.techniques.index("controlnet")
    assert found["pixel-brier"][:, j] == pytest.approx(SHARES["controlnet"] / 2)
    assert found["eps"][:, j] == pytest.approx(SHARES["controlnet"])
    assert found["cosine@own"][:, j] == pytest.approx(SHARES["controlnet"])
    assert found["logme-images"][:, j] == pytest.approx(SHARES["controlnet"])
    assert found["carried-image"][:, j] == pytest.approx(SHARES["controlnet"] / 10)
    assert found["suppression"] == pytest.approx((found["eps"] + found["cosine@own"]) / 2)
    assert (found["logme-images"][:, place.techniques.index("prompt")] == 0).all()


def test_a_planted_quantity_is_found_and_chance_and_its_opposite_are_not(board: Board) -> None:
    table = tabulate(board, resamples=20)
    row = table["spearman"]["pooled"]["all"]
    assert row["eps"]["32"]["value"] == pytest.approx(1)
    assert row["brier"]["32"]["value"] == pytest.approx(-1)
    assert row["pixel-brier"]["32"]["value"] > 0.9
    assert abs(row["random"]["32"]["value"]) < 0.4
    assert row["other domains"]["32"]["value"] > 0.9
    assert table["top1_regret"]["pooled"]["all"]["eps"]["32"]["value"] == pytest.approx(0)
    assert table["top1_regret"]["pooled"]["all"]["brier"]["32"]["value"] > 20
    assert table["best_in_top3"]["classification"]["all"]["eps"]["16"]["value"] == 1
    assert table["signs_right"]["pooled"]["all"]["eps"]["32"]["value"] == 1
    noisy = row["pixel-brier"]["16"]
    assert noisy["low"] < noisy["value"] <= noisy["high"]


def test_without_leaks_they_play_no_part() -> None:
    cells = planted_cells(unnamed=False)
    for cell in cells:
        if cell.key.technique in LEAKS:  # eps is wrong about leaks alone
            cell.single["pass eps"] = np.full(SETTINGS.screening, 0.5)
    table = tabulate(make_board(places_of(cells), SETTINGS), resamples=5)["spearman"]["pooled"]
    assert table["without leaks"]["eps"]["32"]["value"] == pytest.approx(1)
    assert table["all"]["eps"]["32"]["value"] < 0.6


def test_draws_that_agree_are_stable(board: Board) -> None:
    found = stabilities(board)
    assert found["eps"]["16"] == pytest.approx(1)
    assert abs(found["linear"]["16"]) < 0.5
    assert found["pixel-brier"]["32"] > 0.9


def test_costs_are_sums_over_cells() -> None:
    found = cost_ratios(planted_cells(), SETTINGS)
    assert found["classification"]["32"]["value"] == pytest.approx((32 * 2 * 0.01 + 0.4) / 11)
    assert found["pooled"]["16"]["value"] == pytest.approx((16 * 2 * 0.01 + 0.2) / 12)
    assert found["pooled"]["16"]["low"] <= found["pooled"]["16"]["value"] <= found["pooled"]["16"]["high"]


def test_results_are_json_and_the_page_tells_them() -> None:
    planted = planted_cells(noise=0.01)
    results = json.loads(
        json.dumps(plain(analyse(planted, SETTINGS, board_of(planted, SETTINGS), resamples=5)))
    )
    keys = "techniques tasks spearman kendall top1_regret top3_recall coverage cost_ratio"
    assert set(keys.split()) <= set(results)
    assert results["techniques"] == sorted(SHARES)
    assert results["leaks"] == sorted(LEAKS)
    page = page_of(results)
    assert "| eps | 1.00 [1.00, 1.00] |" in page
    assert "Unfinished" in page  # the settings ask for more techniques than there are
    assert "| controlnet (leak) | +6.0* |" in page
    assert page.count("## What training said, t = 300") == 1 and "The same of each timestep" not in page
    two = {**results, "timesteps": [50, 300], "settings": {**results["settings"], "timesteps": [300, 50]}}
    two["rules"] = {
        name: {**report, "by_timestep": {"50": report["by_timestep"]["300"], **report["by_timestep"]}}
        for name, report in results["rules"].items()
    }
    two["truth"] = [{**row, "timestep": t} for t in (300, 50) for row in results["truth"]]
    page = page_of(two)
    assert page.index("## What training said, t = 300") < page.index("## What training said, t = 50")
    assert "| rule: masks | 50 | " in page and page.count("study/gains.png") == 1


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    cell = planted_cells()[0]
    cell.drawn["brier"][0] = float("nan")
    save_cell(tmp_path, cell)
    again = load_cell(file_of(tmp_path, cell.key))
    assert again.key == cell.key and again.leak == cell.leak and again.seconds == cell.seconds
    assert np.isnan(again.drawn["brier"][0]) and again.drawn["linear"] == cell.drawn["linear"]
    assert again.truth["classification"] == pytest.approx(cell.truth["classification"])
    once = np.ones((1, again.heads("classification").shape[1]))
    assert again.errors("classification", once)[:, 0] == pytest.approx([0.5, 0.5])
