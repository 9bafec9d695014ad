"""Massive activations: found where they are planted, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipelines import build
from torch.nn.functional import cosine_similarity

import gate
from gate.backbone import Backbone
from gate.backbones.massive import massive_channels, without
from gate.data import load_data

LAYER, CHANNEL = "planted", 3


def test_only_what_is_massive_is_found() -> None:
    feature = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    assert massive_channels(feature).tolist() == []
    assert without(feature, massive_channels(feature)) is feature
    feature[:, [2, 9]] *= torch.tensor([300.0, 50.0]).view(1, 2, 1, 1)
    assert massive_channels(feature).tolist() == [2]
    cleared = without(feature, torch.tensor([2]))
    assert float(cleared[:, 2].abs().max()) == 0.0 and torch.equal(cleared[:, 3:], feature[:, 3:])


def _loaded(folder: Path) -> Backbone:
    backbone = gate.load_backbone(str(folder), device="cpu", dtype="float32")
    vars(backbone)["layer_paths"] = {LAYER: "transformer_blocks.1"}
    return backbone


def _similarity(feature: torch.Tensor) -> float:
    """Mean cosine similarity of positions of one image with the same positions of another."""
    return float(cosine_similarity(feature[:1], feature[1:], dim=1).mean())


def test_a_planted_channel_no_longer_drowns_similarity(tmp_path: Path) -> None:
    folder = build("pixart", tmp_path)
    images = load_data("scenes-held-out", n=2, size=64)
    plain = _loaded(folder).extract(images, layers=[LAYER])[LAYER]
    planted = _loaded(folder)
    with torch.no_grad():
        planted.denoiser.get_submodule("transformer_blocks.1.ff.net.2").bias[CHANNEL] = 3e3
        raw = planted.denoise(planted.batch(images.samples).request(50, 0), [LAYER]).features[LAYER]
    settled = planted.extract(images, layers=[LAYER])[LAYER]
    others = [c for c in range(plain.shape[1]) if c != CHANNEL]
    assert _similarity(raw) > 0.999
    assert _similarity(settled) == pytest.approx(_similarity(plain[:, others]), abs=1e-5)
    assert planted.massive[LAYER].tolist() == [CHANNEL]  # type: ignore[attr-defined]
    assert float(settled[:, CHANNEL].abs().max()) == 0.0


def test_unets_are_left_alone(tiny: Backbone) -> None:
    tiny.calibrate(["up1"])
    assert not tiny.massive  # type: ignore[attr-defined]
