"""Where to take features: places of one technique against a default place, on the same images, noise and folds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gate.cli import app
from gate.errors import ConfigurationError, UsageError
from gate.probes.pixel_brier import PixelBrier
from gate.screening.config import make_config
from gate.screening.where import EVERY, _ranked, where

FEW = {
    "techniques": "prompt",
    "samples": 16,
    "seeds": 1,
    "timesteps": (50, 500),
    "layers": "up0,up2",
    "resamples": 200,
}


def test_every_timestep_and_layer_is_a_place_and_the_base_is_itself() -> None:
    found = where(make_config(FEW))
    assert {(p.timestep, p.layer) for p in found.places} == {
        (t, x) for t in (50, 500) for x in ("up0", "up2", EVERY)
    }
    base = next(p for p in found.places if (p.timestep, p.layer) == found.base == (50, EVERY))
    assert (base.gain.value, base.gain.low, base.gain.high, base.verdict) == (0, 0, 0, "none")
    for place in found.places:
        assert place.gain.value == pytest.approx(1 - place.error / base.error, abs=1e-6)
    gains = [p.gain.value for p in found.places]
    assert gains == sorted(gains, reverse=True) and found.places[0].as_good
    worst = found.places[-1]
    assert worst.layer == "up0", "2 x 2 cells of a picture say least of where things are"


def test_a_planted_place_wins_and_the_sentence_says_how_sure() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.5, 1, 40)

    def columns(share: float) -> Any:
        return np.stack(
            [256 * share * hard * rng.uniform(0.95, 1.05, 40), np.full(40, 256.0), np.full(40, 300.0)], axis=1
        )

    places = {(50, EVERY): columns(1.0), (300, "up1"): columns(0.7), (300, "up0"): columns(1.4)}
    found = _ranked(
        PixelBrier(), places, {k: np.zeros(40) for k in places}, (50, EVERY), seed=0, resamples=300
    )
    assert [(p.timestep, p.layer, p.verdict) for p in found] == [
        (300, "up1", "better"),
        (50, EVERY, "none"),
        (300, "up0", "worse"),
    ]
    assert found[0].gain.low < 0.3 < found[0].gain.high + 0.02 and not found[1].as_good


def test_one_technique_is_asked_about_and_truth_is_needed(tmp_path: Any) -> None:
    from PIL import Image

    with pytest.raises(UsageError, match="--where is about one technique, and 2 were named"):
        where(make_config({**FEW, "techniques": "prompt,freeu"}))
    for i in range(8):
        Image.fromarray(np.full((64, 64, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ConfigurationError, match="neither masks nor labels"):
        where(make_config({**FEW, "techniques": "freeu", "samples": 8, "images": str(tmp_path)}))


def test_the_command_prints_places_as_json() -> None:
    flags = [
        "--techniques",
        "vanilla",
        "--samples",
        "16",
        "--seeds",
        "1",
        "--timesteps",
        "50,300",
        "--layers",
        "up2",
    ]
    ran = CliRunner().invoke(
        app, ["screen", "--where", *flags, "--resamples", "200", "--format", "json", "--quiet"]
    )
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert said["technique"] == "vanilla" and len(said["places"]) == 4 and said["sentence"]


def test_a_config_file_may_ask_where(tmp_path: Any) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("where: true\ntechniques: prompt,freeu\n", encoding="utf-8")
    ran = CliRunner().invoke(app, ["screen", "--config", str(file)])
    assert ran.exit_code == 2 and "--where is about one technique" in " ".join(ran.output.split())
