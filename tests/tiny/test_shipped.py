"""The companions: what of a fit is taken over, that they fit into the package, and that they do what the card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import gate.tiny
from gate.adapters.networks import FOLDER
from gate.errors import UsageError
from gate.tiny.recipe import shipped

PACKAGE = Path(gate.tiny.__file__).parent
COMPANIONS = PACKAGE / FOLDER


def test_a_fit_is_taken_over_in_half_precision_without_what_only_training_needs(tmp_path: Path) -> None:
    fit = tmp_path / "thing"
    (fit / "over-fitted").mkdir(parents=True)
    for name in ("card.md", "checkpoint.pt", "losses.png"):
        (fit / name).write_text("{}")
    (fit / "fit.json").write_text('{"config": {"name": "lora"}}')
    idle = "unet.mid_block.attentions.0.to_q.lora_B.weight"
    values = {"a": torch.randn(3), "n": torch.arange(2), idle: torch.ones(2)}
    for folder in (fit, fit / "over-fitted"):
        save_file(values, folder / "w.safetensors", metadata={"rank": "8"})
    target = shipped.adopt(fit, tmp_path / "tiny" / "weights", over_fitted=fit)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [
        "fit.json", "over-fitted/fit.json", "over-fitted/w.safetensors", "w.safetensors",
    ]  # fmt: skip
    stored = load_file(target / "w.safetensors")
    assert torch.equal(stored["a"], values["a"].half()) and torch.equal(stored["n"], values["n"])
    assert not stored[idle].any()  # nothing listens there
    with safe_open(target / "w.safetensors", "pt") as file:
        assert file.metadata() == {"rank": "8"}
    with pytest.raises(UsageError, match="not a finished fit"):
        shipped.adopt(tmp_path, tmp_path / "tiny" / "weights")


def test_all_weights_together_are_at_most_60_mb() -> None:
    base = shipped.size(PACKAGE / "weights")
    assert base <= 40e6 and base + shipped.size(COMPANIONS) <= 60e6


@pytest.mark.parametrize("name", sorted(p.name for p in COMPANIONS.iterdir()))
def test_each_says_how_it_was_fitted_and_that_it_helped(name: str) -> None:
    report = json.loads((COMPANIONS / name / "fit.json").read_text())
    assert report["backbone"]["name"] == "tiny" and report["config"]["name"]
    if name != "ip-adapter":  # weak in the paper, and without effect here: see the card
        assert report["kept"]["held_out_gain"]["low"] > 0


@pytest.mark.parametrize("name", ["controlnet-canny", "lora-sketches"])
@pytest.mark.slow
def test_the_cards_figure_can_be_had_again(name: str) -> None:
    """On fewer scenes: the share of vanilla's x0_hat error that is gone lies above 0 beyond chance."""
    what = shipped.MEASURED[name]
    figure = shipped.x0_error_removed(what.technique, what.data, n=32)
    written = json.loads((PACKAGE / "companions.json").read_text())["x0_error_removed"][name]
    assert figure.low > 0 and written["low"] > 0
    assert abs(figure.value - written["value"]) < 0.1
