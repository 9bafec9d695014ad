"""A study of a handful of images, for real: cells, resuming, the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gate.cli import app
from gate.study.cell import file_of, load_cell, load_cells
from gate.study.folder import conclude, missing, open_study, run_study
from gate.study.plan import CellKey, StudySettings

SMALL = StudySettings(
    domains=("held-out",),
    timesteps=(300,),
    techniques=("vanilla", "prompt", "shuffled-prompt", "ip-adapter"),
    screening=16,
    train=16,
    test=12,
    pairs=6,
    sizes=(8, 16),
    draws=1,
    head_seeds=2,
    tasks=("segmentation-linear[epochs=1]", "classification[epochs=1]", "correspondence-conv[epochs=1]"),
    image_samples=0,
    batch_size=16,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("study") / "small"
    open_study(made, SMALL)
    run_study(made, SMALL, workers=1, progress=lambda *_: None, log=lambda _: None)
    return made


def test_every_cell_holds_truth_quantities_and_costs(folder: Path) -> None:
    cells = load_cells(folder)
    assert {c.key.technique for c in cells} == set(SMALL.techniques) and not missing(folder, SMALL)
    for cell in cells:
        assert set(cell.truth) == {"segmentation-linear", "classification", "correspondence-conv"}
        assert cell.truth["classification"].shape[:2] == (2, 12)
        assert {"pixel-brier", "brier", "pixel-regression", "logme-pixels", "h-score-images"} <= set(
            cell.drawn
        )
        assert all(len(v) == 2 for v in cell.drawn.values())
        assert {"shift cosine@own", "shift laplacian", "pass eps", "pass high-frequency-ratio"} <= set(
            cell.single
        )
        assert cell.single["pass eps"].shape == (16,) and cell.columns["pixel-brier"].shape[0] == 24
        assert {"pass", "n=8", "n=16", "extraction of heads", "head classification"} <= set(cell.seconds)
    leaks = {c.key.technique for c in cells if c.leak}
    assert leaks == {"ip-adapter"}


def test_a_lost_cell_is_made_again_to_the_same_numbers(folder: Path) -> None:
    key = CellKey("held-out", 300, "prompt")
    before = load_cell(file_of(folder, key))
    file_of(folder, key).unlink()
    assert missing(folder, SMALL) == [key]
    told: list[tuple[str, int, int]] = []
    run_study(folder, SMALL, workers=2, progress=lambda *a: told.append(a), log=lambda _: None)
    after = load_cell(file_of(folder, key))
    assert told[-1][1] == told[-1][2]
    for name, values in before.truth.items():
        assert np.array_equal(values, after.truth[name])
    assert before.drawn == after.drawn


def test_the_page_is_written_from_what_is_there(folder: Path, tmp_path: Path) -> None:
    results = conclude(folder, tmp_path, resamples=3)
    assert results["cells"] == {"done": 4, "of": 4}
    text = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "3 techniques x 3 tasks x 1 domains" in text and "Unfinished" not in text
    assert (tmp_path / "study" / "results.json").is_file() and (
        tmp_path / "study" / "agreement.png"
    ).is_file()


def test_the_command_tells_of_a_finished_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["study", "--output", str(folder), "--quiet"], standalone_mode=False)
    assert "4 of 4 cells, 3 cases" in capsys.readouterr().out


@pytest.mark.slow
def test_the_miniature_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["study", "--output", str(tmp_path / "m"), "--miniature", "--quiet"], standalone_mode=False)
    assert "10 of 10 cells" in capsys.readouterr().out
