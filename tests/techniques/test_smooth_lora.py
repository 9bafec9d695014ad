"""smooth-lora: its public layouts, its weights on tiny, and whether they do what the paper says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import build

import gate
from gate.backbone import Backbone
from gate.data import load_data
from gate.errors import UnsuitableError
from gate.metrics.istd import Istd
from gate.noise_path import walk
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.technique import Technique
from gate.techniques.smooth_lora import SmoothLora
from gate.testing import check_technique

FILE = "pytorch_lora_weights.safetensors"


def attn_procs(denoiser: Any, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A LoRA as `save_attn_procs` of the paper's time wrote it, and the weights that it makes: W + up down."""
    g = torch.Generator().manual_seed(0)
    state, merged = {}, {}
    for name in denoiser.attn_processors:
        attention = denoiser.get_submodule(name.removesuffix(".processor"))
        for part, path in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
            linear = attention.get_submodule(path)
            down = 0.1 * torch.randn(2, linear.in_features, generator=g)
            up = 0.1 * torch.randn(linear.out_features, 2, generator=g)
            state[f"{prefix}{name}.to_{part}_lora.down.weight"] = down
            state[f"{prefix}{name}.to_{part}_lora.up.weight"] = up
            merged[f"unet.{name.removesuffix('.processor')}.{path}.weight"] = linear.weight + up @ down
    return state, merged


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_the_papers_layout_is_read(prefix: str, backbone: Backbone, tmp_path: Path) -> None:
    state, merged = attn_procs(backbone.denoiser, prefix)
    save_file(state, tmp_path / FILE)
    found = SmoothLora(weights=str(tmp_path))._load(backbone)
    assert found.keys() == merged.keys()
    for key, value in merged.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


def test_sdxl_is_served(tmp_path: Path) -> None:
    xl = gate.load_backbone(str(build("sdxl", tmp_path / "xl")), device="cpu", dtype="float32")
    state, _ = attn_procs(xl.denoiser, "unet.")
    save_file(state, tmp_path / FILE)
    samples = load_data("scenes-held-out", n=3, size=xl.image_size)
    report = check_technique(f"smooth-lora[weights={tmp_path}]", xl, samples)
    assert report.ok, str(report)
    with pytest.raises(UnsuitableError, match="gate fit smooth-lora"):
        SmoothLora().check(xl, samples)


def test_public_weights_are_named_where_they_are_missing(backbone: Backbone, samples: SampleSet) -> None:
    with pytest.raises(UnsuitableError, match="gate fit smooth-lora"):  # of no known width
        SmoothLora().check(backbone, samples)


def istd(tiny: Any, samples: SampleSet, technique: Technique) -> torch.Tensor:
    with technique.attach(tiny):
        frames = []
        for i in range(len(samples)):
            batch = tiny.batch(samples[i : i + 1].samples)
            words = batch.neutral.with_text(tiny.encode_prompts([samples[i].caption or ""]))
            frames.append(walk(technique, batch, words, steps=20, seed=0))
    return torch.cat([Istd().spread(f) for f in frames])


@pytest.mark.slow
def test_istd_falls_with_the_weights_that_ship(tiny: Any) -> None:
    samples = load_data("scenes-held-out", n=12, size=64, seed=3)
    before, after = (istd(tiny, samples, t) for t in (Technique(), create_technique("smooth-lora")))
    assert float(after.mean()) < float(before.mean())
