"""Fitting a LoRA: what is learned, interrupted, resumed, halved, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gate.errors import ConfigurationError, UsageError
from gate.fit import FitInterrupted, fit, make_fit_config
from gate.fit.loop import captions_of
from gate.fit.lora import LoraTrainer
from gate.registry import create_technique

SMALL: dict[str, Any] = {
    "name": "lora", "data": "scenes-held-out", "samples": 10, "steps": 4, "check_every": 2, "batch_size": 4,
    "rank": 2, "sheet": 1, "text_rate": 5e-4,
}  # fmt: skip
FILE = "pytorch_lora_weights.safetensors"


def fitted(folder: Path, **changes: Any) -> Path:
    return fit(make_fit_config({**SMALL, **changes, "output": str(folder)})).path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(tmp_path_factory.mktemp("fit") / "lora")


def test_a_caption_becomes_none_tags_and_the_sentence() -> None:
    assert captions_of("a photo of a red fox and an owl, on grass") == (
        "", "red fox, owl, grass", "a photo of a red fox and an owl, on grass",
    )  # fmt: skip
    assert captions_of(None) == captions_of("") == ("",)


def test_a_fit_leaves_weights_pictures_and_a_card(done: Path) -> None:
    report = json.loads((done / "fit.json").read_text())
    assert report["steps"] == 4 and set(report["held_out"]) == {"0", "2", "4"}
    assert report["kept"]["held_out_gain"]["n"] == report["data"]["held_out"] == 2
    for name in (FILE, f"over-fitted/{FILE}", "losses.png", "samples.png"):
        assert (done / name).stat().st_size > 0
    card = (done / "card.md").read_text()
    assert "gate fit lora" in card and "--data scenes-held-out" in card and "n |" in card


def test_what_is_fitted_is_a_technique_that_changes_features(done: Path, tiny: Any, scenes: Any) -> None:
    technique = create_technique(f"lora[weights={done / 'over-fitted'}]")
    changed = tiny.extract(scenes[:1].samples, technique=technique)
    plain = tiny.extract(scenes[:1].samples)
    assert all(not torch.equal(changed[k], plain[k]) for k in plain)


@pytest.mark.slow
def test_an_interrupted_fit_resumes_to_the_same_weights(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = LoraTrainer.predict, []

    def predict(self: LoraTrainer, x_t: Any, t: Any, texts: Any, rows: Any) -> Any:
        calls.append(len(x_t))
        if (
            len(calls) == 8
        ):  # 2 looks of 2 images, 2 steps, 2 more images and one step: in the third step's wake
            raise KeyboardInterrupt
        return real(self, x_t, t, texts, rows)

    monkeypatch.setattr(LoraTrainer, "predict", predict)
    with pytest.raises(FitInterrupted, match="--resume"):
        fitted(tmp_path / "lora")
    monkeypatch.undo()
    config = make_fit_config({**SMALL, "output": str(tmp_path / "lora")})
    with pytest.raises(UsageError, match="--resume"):
        fit(config)
    with pytest.raises(ConfigurationError, match="other settings"):
        fit(make_fit_config({**SMALL, "rank": 3, "output": str(tmp_path / "lora")}), resume=True)
    again = fit(config, resume=True).path
    ours, theirs = (load_file(folder / "over-fitted" / FILE) for folder in (again, done))
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.slow
def test_out_of_memory_halves_what_goes_through_and_changes_no_result(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LoraTrainer.predict

    def predict(self: LoraTrainer, x_t: Any, t: Any, texts: Any, rows: Any) -> Any:
        if torch.is_grad_enabled() and len(x_t) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(self, x_t, t, texts, rows)

    monkeypatch.setattr(LoraTrainer, "predict", predict)
    lines: list[str] = []
    config = make_fit_config({**SMALL, "output": str(tmp_path / "lora")})
    path = fit(config, log=lines.append).path
    assert any("2 images at a time" in line for line in lines)
    losses = [json.loads((p / "fit.json").read_text())["losses"] for p in (path, done)]
    np.testing.assert_allclose(list(losses[0].values()), list(losses[1].values()), rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "lorra"}, "Did you mean 'lora'"),
        ({"data": None}, "--images DIR"),
        ({"rank": 0}, "rank"),
        ({"output": ""}, "--output"),
    ],
)
def test_wrong_settings_are_one_sentence(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        fit(make_fit_config({**SMALL, "output": str(tmp_path / "x"), **changes}))


@pytest.mark.parametrize(
    "name",
    [
        "controlnet",
        pytest.param("t2i-adapter", marks=pytest.mark.slow),
        pytest.param("ip-adapter", marks=pytest.mark.slow),
        pytest.param("textual-inversion", marks=pytest.mark.slow),
        pytest.param("cleandift", marks=pytest.mark.slow),
    ],
)
def test_the_others_are_fitted_and_screened_as_techniques(
    name: str, tmp_path: Path, tiny: Any, scenes: Any
) -> None:
    from gate.intact import Intact

    before = Intact(tiny)
    path = fitted(tmp_path / "net", name=name, steps=2)
    report = json.loads((path / "fit.json").read_text())
    assert set(report["held_out"]) == {"0", "2"}
    assert (path / "samples.png").exists() == (name != "cleandift")
    technique = create_technique(f"{name}[weights={path}]")
    technique.check(tiny, scenes)
    changed, plain = (tiny.extract(scenes[:1].samples, technique=t) for t in (technique, ""))
    assert any(not torch.equal(changed[k], plain[k]) for k in plain)
    assert not before.changes()


@pytest.mark.slow
def test_a_gain_is_measured_against_the_plain_backbone(tmp_path: Path) -> None:
    """A T2I-Adapter and an IP-Adapter change the prediction from their first step on; step 0 is without them."""
    zero = [
        json.loads((fitted(tmp_path / name, name=name, steps=1, sheet=0) / "fit.json").read_text())[
            "held_out"
        ]["0"]
        for name in ("lora", "controlnet", "t2i-adapter", "ip-adapter", "textual-inversion")
    ]
    np.testing.assert_allclose(zero, zero[0], rtol=1e-5)


def test_cleandifts_adapters_start_as_the_identity(tiny: Any, scenes: Any) -> None:
    from gate.fit.cleandift import Adapter, CleanDiftTrainer

    feature = torch.randn(2, 8, 4, 4)
    assert torch.equal(Adapter(8)(feature, torch.tensor([0.1, 0.9])), feature)
    trainer = CleanDiftTrainer(tiny, make_fit_config({**SMALL, "name": "cleandift", "output": "x"}), scenes)
    batch = tiny.batch(scenes[:2].samples)
    request = batch.request(300, 0)
    asked = (request.x_t, request.eps, request.t, ["", "a bird"], [0, 1])
    with torch.no_grad():
        torch.testing.assert_close(trainer.loss(*asked), trainer.plain_loss(*asked))
        same = trainer.plain_loss(
            batch.x0, torch.zeros_like(batch.x0), torch.zeros(2, dtype=torch.long), ["", ""], [0, 1]
        )
    assert bool((same < 1e-4).all())  # at t = 0 teacher and student see nearly the same
