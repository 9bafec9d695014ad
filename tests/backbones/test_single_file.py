"""Complete checkpoints in one file, under the keys of the original code: equal to their folder, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm_keys import clip_keys, open_clip_keys, unet_keys, vae_keys
from safetensors.torch import load_file, save_file
from small_pipelines import sdxl, stable_diffusion
from torch import Tensor

import gate
from gate.data import load_data
from gate.errors import ConfigurationError, GateError, MissingWeightsError, UsageError

WEIGHTS = "diffusion_pytorch_model.safetensors"
State = dict[str, Tensor]


def _body(folder: Path) -> State:
    state = unet_keys(load_file(folder / "unet" / WEIGHTS), blocks=2, resnets=1)
    return state | vae_keys(load_file(folder / "vae" / WEIGHTS), blocks=3)


def _encoder(folder: Path, part: str = "text_encoder") -> State:
    return load_file(folder / part / "model.safetensors")


def _sd1(folder: Path) -> State:
    """As published: the exponential mean of the weights, the betas and the positions lie beside."""
    state = _body(folder)
    beside = {f"model_ema.{key.replace('.', '')}": value + 1 for key, value in state.items()}
    beside |= {"alphas_cumprod": torch.rand(1000), "model_ema.decay": torch.tensor(0.9999)}
    beside["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state | clip_keys(_encoder(folder), "cond_stage_model.transformer.") | beside


def _sd2(folder: Path) -> State:
    return _body(folder) | open_clip_keys(_encoder(folder), "cond_stage_model.model.")


def _sdxl(folder: Path) -> State:
    first = clip_keys(_encoder(folder), "conditioner.embedders.0.transformer.")
    return (
        _body(folder)
        | first
        | open_clip_keys(_encoder(folder, "text_encoder_2"), "conditioner.embedders.1.model.")
    )


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], State]]] = {
    "Stable Diffusion 1": (stable_diffusion, _sd1),
    "Stable Diffusion 2": (stable_diffusion, _sd2),
    "SDXL": (lambda folder: sdxl(folder, second=24), _sdxl),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_checkpoint_is_its_folder(kind: str, tmp_path: Path) -> None:
    build, original = KINDS[kind]
    torch.manual_seed(0)
    folder = build(tmp_path / "pipeline")
    save_file(original(folder), tmp_path / "one.safetensors")
    one, many = (
        gate.load_backbone(str(path), device="cpu", dtype="float32", pipeline=str(folder))
        for path in (tmp_path / "one.safetensors", folder)
    )
    assert set(one.components) == set(many.components) and one.family == many.family
    for part, module in many.components.items():
        theirs = one.components[part].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items()), part
    samples = load_data("scenes-held-out", n=2, size=many.image_size).samples
    predictions = []
    for backbone in (one, many):
        request = backbone.batch(samples).request(300, 0)
        given = backbone.encode_prompts(["a cat", "two dogs"])
        with torch.no_grad():
            predictions.append(backbone.denoise(request.with_(conditioning=given), []).prediction)
    assert torch.equal(*predictions) and float(predictions[0].abs().max()) > 0.1
    assert len(one.fingerprint()) == 16


def _without(part: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if part not in key}


def _bent(state: State) -> State:
    return {**state, "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(3, 3)}


BROKEN: dict[str, tuple[Callable[[State], State], str]] = {
    "a tensor of the denoiser": (
        _without("input_blocks.1.0.in_layers.2.weight"),
        r"lacks down_blocks\.0\.resnets\.0\.conv1\.weight of its UNet2DConditionModel; fetch that file again",
    ),
    "a tensor of the encoder": (_without("layers.0.mlp.fc1.bias"), r"lacks .*fc1\.bias of its CLIPTextModel"),
    "tensors of the VAE": (
        _without("decoder.conv_in."),
        r"lacks decoder\.conv_in\.\w+ and 1 more of its AutoencoderKL",
    ),
    "the encoder": (
        _without("cond_stage_model"),
        "lacks the weights of the CLIPTextModel .*a denoiser alone",
    ),
    "a shape": (
        _bent,
        r"does not fit the configs of pipeline: conv_in\.weight expected shape .*--pipeline",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("sd") / "pipeline")


@pytest.mark.parametrize("what", BROKEN)
def test_what_a_file_lacks_is_named(what: str, folder: Path, tmp_path: Path) -> None:
    change, said = BROKEN[what]
    save_file(change(_sd1(folder)), tmp_path / "one.safetensors")
    with pytest.raises(ConfigurationError, match=said):
        gate.load_backbone(str(tmp_path / "one.safetensors"), device="cpu", pipeline=str(folder))


@pytest.mark.parametrize("follows", [True, False])
def test_a_cut_file_is_said_to_be_one(follows: bool, folder: Path, tmp_path: Path) -> None:
    save_file(_sd1(folder), tmp_path / "one.safetensors")
    whole = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").write_bytes(whole[: len(whole) // 2])
    options: dict[str, Any] = {"pipeline": str(folder)} if follows else {}
    with pytest.raises(ConfigurationError, match=r"one\.safetensors is cut short.*fetch that file again"):
        gate.load_backbone(str(tmp_path / "one.safetensors"), device="cpu", **options)


def test_a_single_file_that_says_nothing_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises((UsageError, MissingWeightsError), match="--pipeline|gate download"):
        gate.load_backbone(str(tmp_path / "odd.safetensors"))


def test_a_pipeline_that_no_single_file_holds_is_refused(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "DDPMPipeline"}))
    save_file(_sd1(folder), tmp_path / "one.safetensors")
    with pytest.raises(GateError, match="DDPMPipeline cannot be read from a single file; give its folder"):
        gate.load_backbone(str(tmp_path / "one.safetensors"), device="cpu", pipeline=str(other))
