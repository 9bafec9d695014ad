"""Layers, capture and the UNet backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gate.backbone import Backbone, pixels
from gate.backbones import capture, load_backbone, resolve_layers
from gate.errors import ConfigurationError, MissingWeightsError, NonFiniteError, UsageError
from gate.sample import SampleSet


def test_every_block_of_stable_diffusion_has_its_layers(tiny: Backbone) -> None:
    for i in range(4):
        assert f"down{i}" in tiny.layer_paths and f"up{i}" in tiny.layer_paths
        assert all(f"up{i}.resnet{j}" in tiny.layer_paths for j in range(3))
    assert "up3.attention2" in tiny.layer_paths and "up0.attention0" not in tiny.layer_paths


def test_unknown_layer_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="Did you mean 'up1.attention0'"):
        resolve_layers(["up1.atention0"], {"up1.attention0": "x", "mid": "y"})


def test_captured_activations_are_those_of_a_plain_hook(tiny: Backbone, scenes: SampleSet) -> None:
    request = tiny.batch(scenes[:2].samples).request(50, 0)
    response = tiny.denoise(request, ("up2", "up1.attention0.block0.cross.q"))
    seen: list[torch.Tensor] = []
    handle = tiny.denoiser.get_submodule("up_blocks.2").register_forward_hook(lambda m, a, o: seen.append(o))
    tiny.predict(request)
    handle.remove()
    assert float((response.features["up2"] - seen[0]).abs().max()) == 0.0
    tokens = response.features["up1.attention0.block0.cross.q"]
    assert tokens.ndim == 4 and tokens.shape[-1] == tokens.shape[-2]


def test_capture_leaves_no_hook_behind(tiny: Backbone) -> None:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.denoiser.modules())

    before = hooks()
    with pytest.raises(RuntimeError, match="stop"), capture(tiny.denoiser, {"mid": "mid_block"}):
        raise RuntimeError("stop")
    assert hooks() == before


def test_batch_of_one_equals_batch_of_eight(tiny: Backbone, scenes: SampleSet) -> None:
    layers = resolve_layers(["paper"], tiny.layer_paths)
    with torch.no_grad():
        eight = tiny.denoise(tiny.batch(scenes[:8].samples).request(50, 0), layers)
        one = [tiny.denoise(tiny.batch([s]).request(50, 0), layers) for s in scenes[:8]]
    for layer in layers:
        single = torch.cat([r.features[layer] for r in one])
        scale = float(eight.features[layer].abs().max())
        torch.testing.assert_close(single / scale, eight.features[layer] / scale, rtol=0, atol=1e-5)


def test_encoding_and_decoding_round_trip(tiny: Backbone, scenes: SampleSet) -> None:
    images = pixels(scenes[:4].samples)
    made = tiny.decode(tiny.encode(images))
    assert made.shape == images.shape and float(made.min()) >= 0 and float(made.max()) <= 1
    assert float(-10 * torch.log10((made - images).square().mean())) > 20


def test_a_broken_feature_names_its_layer(tiny: Backbone, scenes: SampleSet) -> None:
    request = tiny.batch(scenes[:1].samples).request(50, 0)
    with pytest.raises(NonFiniteError, match=r"Layer up0 of tiny .* --dtype float32"):
        tiny.denoise(request.with_(x_t=request.x_t * float("nan")), ("up0",))


def test_extract_gives_features_of_the_asked_layers(tiny: Backbone, scenes: SampleSet) -> None:
    features = tiny.extract(scenes[:3], layers=["up1", "up3"], timestep=50, batch_size=2)
    assert list(features) == ["up1", "up3"]
    assert features["up3"].shape[0] == 3 and features["up3"].shape[-1] == 16


def test_unknown_incomplete_and_unserved_backbones(tmp_path: Path, tiny: Backbone) -> None:
    with pytest.raises(UsageError, match="Unknown backbone"):
        load_backbone("tny")
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "FluxPipeline", "transformer": ["a", "b"]})
    )
    with pytest.raises(ConfigurationError, match="FluxPipeline"):
        load_backbone(str(tmp_path))
    shutil.copy(tiny.source / "model_index.json", tmp_path)
    with pytest.raises(MissingWeightsError, match="not complete"):
        load_backbone(str(tmp_path))


def test_a_hub_model_that_is_not_here_says_how_to_fetch_it() -> None:
    with pytest.raises(MissingWeightsError, match="gate download someone/some-model"):
        load_backbone("someone/some-model")
