"""Rules as they ship, at timesteps that they were not fitted on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gate.errors import ConfigurationError
from gate.study.calibration import Calibration
from gate.study.cell import Cell, save_cell
from gate.study.folder import conclude, open_study
from gate.study.foretold import judge_rule
from gate.study.places import places_of
from gate.study.plan import VANILLA, CellKey
from gate.study.tables import make_board
from tests.study.fabricated_cells import SETTINGS, SHARES, fabricated, planted_cells

FOUR = dataclasses.replace(SETTINGS, timesteps=(300, 50, 150, 500), techniques=(VANILLA, *SHARES))


def cells_at(t: int, *, opposite: bool = False, noise: float = 0.02) -> list[Cell]:
    """Three domains in full; opposite: heads say the opposite of what is measured."""
    found = []
    for domain in ("held-out", "sketches", "cluttered"):
        for name, share in {VANILLA: 0.0, **SHARES}.items():
            cell = fabricated(CellKey(domain, t, name), share, noise=noise)
            if opposite:
                cell.truth = fabricated(CellKey(domain, t, name), -share).truth
            found.append(cell)
    return found


def concluded(folder: Path, cells: list[Cell]) -> tuple[dict, str]:
    open_study(folder / "study", FOUR)
    for cell in cells:
        save_cell(folder / "study", cell)
    results = conclude(folder / "study", folder, resamples=3)
    return results, (folder / "study.md").read_text(encoding="utf-8")


def test_further_timesteps_judge_the_rules_and_fit_none(tmp_path: Path) -> None:
    known = [*cells_at(300), *cells_at(50)]
    before, page = concluded(tmp_path / "a", known)
    assert (
        before["unseen"] is None and before["timesteps"] == [50, 300] and "no rule was fitted on" not in page
    )
    after, page = concluded(tmp_path / "b", [*known, *cells_at(150), *cells_at(500, opposite=True)])
    for key in ("rules", "spearman", "cases", "places", "timesteps"):
        assert after[key] == before[key]  # bit for bit
    rules = [(tmp_path / part / "study" / "rules.json").read_text("utf-8") for part in "ab"]
    assert rules[0] == rules[1]
    new = after["unseen"]
    assert new["timesteps"] == [150, 500] and new["places"] == 6 and new["unseen"] is None
    masks = new["rules"]["rule: masks"]["by_timestep"]
    assert masks["150"]["spearman"]["value"] > 0.9 and masks["500"]["spearman"]["value"] < -0.9
    assert masks["150"]["coverage"]["value"] > 0.85 > masks["500"]["coverage"]["value"]
    assert new["rules"]["rule: masks"]["coefficients"] == pytest.approx(
        after["rules"]["rule: masks"]["coefficients"], abs=1e-4
    )  # the file's four decimals
    assert "## Timesteps that no rule was fitted on, t = 150, 500" in page
    assert "At t = 150, 500, of which no rule has seen anything, 12 cases more." in page
    at = [page.index(f"## What training said, t = {t}") for t in (300, 50, 150, 500)]
    assert at == sorted(at) and page.count("study/gains.png") == 1


def test_cells_of_both_parts_are_counted(tmp_path: Path) -> None:
    results, page = concluded(tmp_path, [*cells_at(300), *cells_at(50), *cells_at(150)])
    assert results["cells"]["done"] == 2 * 27 and results["unseen"]["cells"] == {"done": 27, "of": 54}
    assert f"**Unfinished: 81 of {results['cells']['of'] + 54} cells" in page


def test_a_rule_is_judged_as_it_is() -> None:
    board = make_board(places_of(planted_cells(noise=0.02)), SETTINGS)
    wide, none = Calibration(0.2, 0.0, 1.96), Calibration(1e-4, 0.0, 1.96)
    right = judge_rule(board, {"pixel-brier": 2.0}, wide, n=32)
    assert right.coverage[0] == 1 and right.spearman[0] > 0.9 and right.coefficients == {"pixel-brier": 2.0}
    wrong = judge_rule(board, {"pixel-brier": -2.0}, none, n=32)
    assert wrong.coverage[0] < 0.3 and wrong.spearman[0] < -0.9 and np.isfinite(wrong.regret[0])
    with pytest.raises(ConfigurationError, match="4 draws of 64"):
        judge_rule(board, {"pixel-brier": 2.0}, wide, n=64)
