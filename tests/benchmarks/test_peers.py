"""The peers' worker, on checkouts that have their interfaces and nothing else; what cannot be run is a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.job import Grid
from benchmarks.measure import EXACT, FAST, Settings, measure
from benchmarks.peers import Peers
from benchmarks.table import table

pytestmark = pytest.mark.slow  # half a minute: what users run does not touch it

DIFT = """
import pathlib, time, torch
print("what a peer prints is none of the pipe's")
class SDFeaturizer:
    def __init__(self, weights):
        assert (pathlib.Path(weights) / "unet" / "config.json").is_file()
    def forward(self, image, prompt="", t=261, up_ft_index=1, ensemble_size=8):
        assert image.shape[0] == 3 and image.min() < -0.2 and up_ft_index == 1
        time.sleep(0.001)
        return image[:1] * ensemble_size + t
"""


def checkout(folder: Path, text: str) -> Path:
    file = folder / "src/models/dift_sd.py"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    return folder


def test_a_peer_takes_its_turns_and_one_that_cannot_run_is_a_sentence(tmp_path: Path) -> None:
    peers = [
        checkout(tmp_path / "dift", DIFT),
        checkout(tmp_path / "broken", "import nothing_of_this_name"),
        tmp_path,
    ]
    said: list[str] = []
    settings = Settings("sd15-miniature", sets=("dift",), grid=Grid(2, 2, 2, 1), batch=2, repeats=2)
    with Peers(peers, sys.executable, said.append) as rows:
        found = measure(settings, peers=rows)
        assert rows.told.keys() == {"broken", tmp_path.name}
    [cell] = found["cells"]
    [theirs] = [row for row in cell["rows"] if row["name"].startswith("peer")]
    assert theirs["name"] == "peer DIFT float32" and theirs["difference"] is None
    assert len(theirs["seconds"]) == 2 and all(
        0.004 <= s < 5 for s in theirs["seconds"]
    )  # 2 prompts x 2 images
    assert {(r["slow"], r["fast"]) for r in cell["ratios"]} >= {
        (theirs["name"], EXACT),
        (theirs["name"], FAST),
    }
    assert "own noise" in table(found)
    assert said[0] == "broken is not measured: ModuleNotFoundError: No module named 'nothing_of_this_name'"
    assert "neither DIFT nor generic-diffusion-feature" in said[1]


@pytest.mark.parametrize("text", ["float('nan')", "float('inf')"])
def test_features_that_are_not_finite_end_the_run(tmp_path: Path, text: str) -> None:
    broken = DIFT.replace("+ t", f"* {text}")
    settings = Settings(
        "sd15-miniature", sets=("dift",), modes=("cold",), grid=Grid(1, 1), batch=1, repeats=1
    )
    with (
        Peers([checkout(tmp_path / "dift", broken)], sys.executable) as rows,
        pytest.raises(ValueError, match="not finite"),
    ):
        measure(settings, peers=rows)
