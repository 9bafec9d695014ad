"""What the related systems bring that has no family test of its own, on a small random SDXL and a transformer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import build

import gate
from gate.data import load_data
from gate.errors import UnsuitableError
from gate.passes import single_pass
from gate.registry import create_technique
from gate.technique import Technique

METRICS = ("lipschitz", "lipschitz-features", "noise-share", "mmd", "dci", "tad", "high-frequency-ratio")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_metrics_probes_and_the_told_techniques_are_measured(family: str, tmp_path: Path) -> None:
    """Every number that the systems add is there and finite."""
    out = tmp_path / "run"
    gate.screen(
        techniques="shared-timestep,prompt-search[stages=((1,1),)]", backbone=str(build(family, tmp_path / "p")),
        samples=16, timesteps=(50,), seeds=1, metrics=("eps", "istd", *METRICS), probes=("clusters", "two-sample"),
        image_samples=2, image_steps=1, device="cpu", dtype="float32", output=str(out),
    )  # fmt: skip
    rows = {r["name"]: r for r in json.loads((out / "results.json").read_text())["ranking"]}
    assert set(rows) >= {"shared-timestep", "prompt-search[stages=((1,1),)]"}
    for row in rows.values():
        found: dict[str, Any] = {**row["metrics"], **row["probes"], **row["images"]}
        assert {*METRICS, "istd", "clusters", "two-sample"} <= {name.partition("@")[0] for name in found}
        assert all(math.isfinite(value["value"]) for value in found.values())


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_cleandift_takes_any_denoisers_weights_and_says_where_none_are_known(
    family: str, tmp_path: Path
) -> None:
    backbone = gate.load_backbone(str(build(family, tmp_path / "p")), device="cpu", dtype="float32")
    samples = load_data("scenes-held-out", n=2, size=backbone.image_size)
    with pytest.raises(UnsuitableError, match="weights=FILE"):
        create_technique("cleandift").check(backbone, samples)
    file = tmp_path / "clean.safetensors"
    save_file({k: v.clone() for k, v in backbone.denoiser.state_dict().items()}, file)
    technique = create_technique("cleandift", weights=str(file))
    technique.check(backbone, samples)
    batch = backbone.batch(samples.samples)
    with torch.no_grad(), technique.attach(backbone):
        noisy, own = (single_pass(technique, batch.request(t, 0), ()).prediction for t in (500, 50))
    plain = single_pass(Technique(), batch.clean_request(batch.neutral), ()).prediction
    assert torch.equal(noisy, own), "no timestep and no noise of the pass matters"
    torch.testing.assert_close(noisy, plain.detach())
