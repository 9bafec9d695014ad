"""The probe zero-shot: the Diffusion Classifier through a technique."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_pipelines import build

import gate
from gate.condition_search import NOISE
from gate.data import load_data
from gate.metric import Pass
from gate.passes import single_pass
from gate.probe import make_folds
from gate.probes.zero_shot import ZeroShot
from gate.registry import create_technique
from gate.technique import Technique
from gate.testing import check_probe


def seen(backbone: Any, samples: Any, technique: Technique) -> Pass:
    request = backbone.batch(samples.samples, class_names=samples.classes).request(50, 0)
    return Pass(request, None, {}, {}, lambda asked: single_pass(technique, asked, ()))  # type: ignore[arg-type]


def read(backbone: Any, samples: Any, probe: ZeroShot, name: str = "") -> list[int]:
    technique = create_technique(name) if name else Technique()
    with torch.no_grad(), technique.attach(backbone):
        votes = probe.read(seen(backbone, samples, technique))
    assert votes.shape == (len(samples), len(samples.classes), 1, 1)
    assert bool((votes.sum(dim=1) == 1).all())
    return votes[:, :, 0, 0].argmax(dim=1).tolist()


def exhaustive(backbone: Any, samples: Any, copies: int) -> list[int]:
    """One loop, no pruning, mean squared eps error."""
    batch = backbone.batch(samples.samples, class_names=samples.classes)
    total = torch.zeros(len(samples), len(samples.classes), dtype=torch.float64)
    for k in range(copies):
        request = batch.request(1000 * (2 * k + 1) // (2 * copies), NOISE + k)
        for c, name in enumerate(samples.classes):
            words = backbone.encode_prompts([f"a photo of a {name}"] * len(batch))
            asked = request.with_(conditioning=request.conditioning.with_text(words))
            with torch.no_grad():
                got = backbone.denoise(asked).prediction
            total[:, c] += (got.double() - request.eps.double()).square().mean(dim=(1, 2, 3))
    return total.argmin(dim=1).tolist()


def test_without_pruning_it_is_the_exhaustive_argmin(tiny: Any, scenes: Any) -> None:
    assert read(tiny, scenes[:6], ZeroShot(stages=((2, 1),))) == exhaustive(tiny, scenes[:6], 2)


def test_a_race_without_a_limit_is_exhaustive(tiny: Any, scenes: Any) -> None:
    assert read(tiny, scenes[:6], ZeroShot(copies=2, strictness=math.inf)) == exhaustive(tiny, scenes[:6], 2)


@pytest.mark.slow
def test_pruned_equals_exhaustive_and_beats_chance(tiny: Any) -> None:
    """docs/systems.md has the share on more scenes: here on 48, of art that the model was trained on."""
    samples = load_data("scenes-trained", n=48, size=64, seed=5)
    pruned, full = read(tiny, samples, ZeroShot()), exhaustive(tiny, samples, 8)
    assert np.mean(np.array(pruned) == full) >= 0.95
    assert np.mean([p == s.label for p, s in zip(pruned, samples, strict=True)]) > 4 / 14


def test_it_goes_through_the_technique_and_each_loss_answers(tiny: Any, scenes: Any) -> None:
    quick = {"stages": ((1, 1),)}
    plain = read(tiny, scenes[:4], ZeroShot(**quick))
    assert (
        read(tiny, scenes[:4], ZeroShot(**quick), "prompt") == plain
    )  # the class prompt stands in for its own
    for loss in ("l1", "huber"):
        assert len(read(tiny, scenes[:4], ZeroShot(loss=loss, **quick))) == 4  # type: ignore[arg-type]
    probe, errors = ZeroShot(**quick), []
    for name in ("", "freeu"):
        technique = create_technique(name) if name else Technique()
        with torch.no_grad(), technique.attach(tiny):
            look = seen(tiny, scenes[:2], technique)
            errors.append(probe._error(look, ["a bird"], [0, 1], [0, 0], 0))
    assert not torch.equal(*errors)


def test_equal_prompts_differ_by_exactly_nothing(tiny: Any, scenes: Any) -> None:
    probe, look = ZeroShot(), seen(tiny, scenes[:2], Technique())
    with torch.no_grad():
        first, second = (probe._error(look, ["a bird", "a bird"], [0, 1], [c, c], 3) for c in (0, 1))
    assert torch.equal(first, second)


def test_a_reading_is_a_row_a_sample_that_depends_on_that_sample_alone(tiny: Any, scenes: Any) -> None:
    probe = ZeroShot(stages=((1, 3), (2, 1)))
    together = read(tiny, scenes[:3], probe)
    assert [read(tiny, scenes[i : i + 1], probe)[0] for i in range(3)] == together


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_it_asks_sdxl_and_a_flow_transformer(family: str, tmp_path: Path) -> None:
    backbone = gate.load_backbone(str(build(family, tmp_path)), device="cpu", dtype="float32")
    samples = load_data("scenes-held-out", n=2, size=backbone.image_size)
    assert len(read(backbone, samples, ZeroShot(stages=((1, 1),)))) == 2
    assert not ZeroShot().refuses(backbone)


def test_a_backbone_without_prompts_is_refused_in_a_sentence(tmp_path: Path) -> None:
    backbone = gate.load_backbone(str(build("unconditional", tmp_path)), device="cpu", dtype="float32")
    assert "no prompts" in ZeroShot().refuses(backbone)


def test_it_keeps_the_contract_and_a_probe_that_reads_passes_must_read(scenes: Any) -> None:
    report = check_probe("zero-shot")
    assert report.ok, str(report)
    from gate.errors import PluginError

    with pytest.raises(PluginError, match="`read` goes with"):
        type("Deaf", (ZeroShot.__base__,), {  # type: ignore[misc]
            "name": "deaf", "summary": "s", "source": "s", "reads": "passes", "evaluate": ZeroShot.evaluate,
        })  # fmt: skip
    votes = np.zeros((16, 14, 1, 1), np.float32)
    votes[:, 3] = 1
    counts = ZeroShot().evaluate(votes, scenes, make_folds(scenes))
    assert counts.sum(axis=(0, 1))[3] == 16


@pytest.mark.slow
def test_a_screening_reads_it_once_for_all_passes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    gate.screen(
        techniques="freeu", samples=16, timesteps=(50, 300), seeds=2, layers="mid", metrics="eps",
        probes="zero-shot", image_samples=0, output=str(out),
    )  # fmt: skip
    [row] = [r for r in json.loads((out / "results.json").read_text())["ranking"] if r["name"] == "freeu"]
    assert row["probes"]["zero-shot"]["n"] == 16
    counts = {k: v for k, v in load_file(out / "scores.safetensors").items() if k.endswith("zero-shot")}
    assert counts
    for table in counts.values():
        if table.ndim == 5:  # timesteps, seeds, samples, classes, classes
            assert all(np.array_equal(table[0, 0], table[i, j]) for i in range(2) for j in range(2))
