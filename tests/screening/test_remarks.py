"""What stands beside the numbers of a real run: verdict, loud notes, a probe that says nothing, who may win."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gate.cli import app
from gate.data.named import load_data
from gate.ranking.entry import Entry, Ranking, Weights
from gate.ranking.rank import winners
from gate.ranking.statistics import Interval
from gate.screening import Screening
from gate.screening.doubts import Doubt
from gate.screening.remarks import steps, unconfirmed

cli = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned images, each the only one of its class."""
    root = tmp_path_factory.mktemp("photos")
    for i, sample in enumerate(load_data("scenes-held-out", n=8, size=64)):
        own = root / f"class{i}"
        own.mkdir()
        Image.fromarray(np.asarray(sample.image)).save(own / "a.png")
        (own / "a.txt").write_text(sample.caption or "", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def results(folder: Path) -> Any:
    asked = f"screen --quiet --format json --images {folder} --techniques prompt,shuffled-prompt --samples 8"
    small = "--seeds 1 --timesteps 50 --image-samples 0 --resamples 200 --workers 1 --folds 2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Screening, "plot", lambda self: [])
        done = cli.invoke(app, [*asked.split(), *small.split(), "--output", str(folder.parent / "run")])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_probe_with_one_image_a_class_is_left_out_and_does_not_halve_the_score(results: Any) -> None:
    assert results["score"]["rule"]["name"] == "", "neither masks nor labels that say something"
    assert results["score"]["probes"] == [] and "linear" in results["vanilla"]["probes"]
    for row in results["ranking"]:
        assert row["probe_gain"] is None
        assert row["probes"]["linear"]["value"] == 0  # what would have halved it
        parts = {"eps": row["metrics"]["eps"]["value"], "cosine@own": row["metrics"]["cosine@own"]["value"]}
        rule = results["score"]["rule"]["coefficients"]
        assert row["score"] == pytest.approx(sum(c * parts[m] for m, c in rule.items()))
    assert any(n.startswith("'brier', 'linear' read no more than chance") for n in results["notes"])


def test_a_control_that_does_not_lose_is_the_first_note_and_in_the_verdict(results: Any) -> None:
    prompt, shuffled = sorted(results["ranking"], key=lambda r: r["name"])
    first, second = results["verdict"]
    loses = shuffled["score"] < prompt["score"] and "prompt" not in shuffled["tied_with"]
    assert not loses, "eight images do not tell them apart"
    assert results["notes"][0].startswith("A CONTROL DOES NOT LOSE: prompt (")
    assert first.startswith(("Use prompt: ", "Keep vanilla: "))
    assert second == (
        "prompt cannot be told from its control shuffled-prompt. To separate more: more images, --samples 32."
    )


def test_the_next_step_fits_what_was_screened() -> None:
    def bench(images: str | None) -> Any:
        return SimpleNamespace(config=SimpleNamespace(images=images), samples=range(32))

    assert steps(bench(None), ["a"]) == {
        "more": "--samples 128",
        "next": "the same on your own images, --images DIR",
    }
    assert steps(bench("photos"), ["a"])["next"] == "gate describe 'a'"
    assert steps(bench("photos"), [])["next"] == "gate list techniques"


def test_nobody_wins_whose_probe_loses_and_no_leak_whose_probe_does_not_win() -> None:
    def entry(name: str, low: float, high: float) -> Entry:
        gain = Interval((low + high) / 2, low, high, 9)
        return Entry(name, 1, Interval(0.3, 0.2, 0.4, 9), 0.001, "better", (), gain, gain)

    entries = (
        entry("constant", -0.15, -0.07),
        entry("touching", -0.15, 0.0),
        entry("leak", -0.01, 0.02),
        entry("good leak", 0.01, 0.02),
    )
    ranking = Ranking(entries, "shift and probes", Weights(), (), (), 9, 0.95, ())
    techniques = {e.name: Doubt("", "it is" if "leak" in e.name else "", (), {}) for e in entries}
    denied = unconfirmed(ranking, techniques)
    assert set(denied) == {"constant", "leak"}
    assert winners(ranking, controls=denied) == ("touching", "good leak")
