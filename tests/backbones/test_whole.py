"""Weights that are broken, cut, missing or of another kind: a sentence with the file, the matter and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import build

import gate
from gate.adapters.merge import refuse_lycoris
from gate.backbones.whole import check_nulls
from gate.errors import ConfigurationError, GateError

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("unet", tmp_path_factory.mktemp("unet"))


def _tensor_lost(model: Path) -> None:
    state = load_file(model / UNET)
    del state["conv_in.weight"]
    save_file(state, model / UNET, metadata={"format": "pt"})


def _shape_changed(model: Path) -> None:
    state = load_file(model / UNET)
    state["conv_in.weight"] = torch.zeros(2, 2)
    save_file(state, model / UNET, metadata={"format": "pt"})


def _text_tensor_lost(model: Path) -> None:
    file = model / "text_encoder" / "model.safetensors"
    state = load_file(file)
    del state[next(key for key in sorted(state) if "fc1.weight" in key)]
    save_file(state, file, metadata={"format": "pt"})


def _cut(model: Path) -> None:
    whole = (model / UNET).read_bytes()
    (model / UNET).write_bytes(whole[: len(whole) // 2])


def _scheduler_broken(model: Path) -> None:
    (model / "scheduler" / "scheduler_config.json").write_text('{"beta_start": ', encoding="utf-8")


def _pickled(model: Path) -> None:
    (model / UNET).rename((model / UNET).with_suffix(".bin"))


def _no_encoder(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor is missing": (
        _tensor_lost,
        r"weights in unet of .* lack conv_in\.weight.*fetch that file again",
    ),
    "a shape is another": (_shape_changed, r"weights in unet of .*do not fit its config.*conv_in.*fetch"),
    "the encoder lacks one": (_text_tensor_lost, r"weights in text_encoder of .* lack .*fc1\.weight.*fetch"),
    "a file is cut": (_cut, r"unet/diffusion_pytorch_model\.safetensors of .* is cut short.*fetch"),
    "a config is no JSON": (_scheduler_broken, r"scheduler/scheduler_config\.json of .* is no JSON.*fetch"),
    "weights are pickled": (_pickled, r"unet/diffusion_pytorch_model\.bin.*use_safetensors=False"),
    "an encoder is null": (_no_encoder, r"has no text_encoder \(null in its model_index\.json\)"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_said_with_the_file_and_the_remedy(what: str, folder: Path, tmp_path: Path) -> None:
    damage, said = BROKEN[what]
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    damage(model)
    with pytest.raises(GateError, match=said):
        gate.load_backbone(str(model), device="cpu")


@pytest.mark.parametrize(
    ("name", "said"), [("m.gguf", "quantised weights.*from_single_file"), ("m.ckpt", "is pickled.*save_file")]
)
def test_files_of_another_kind_say_how_they_are_read(name: str, said: str) -> None:
    with pytest.raises(GateError, match=said):
        gate.load_backbone(name, device="cpu")


def test_a_null_that_a_pipeline_does_without_is_none() -> None:
    have, null = ["transformers", "CLIPTextModel"], [None, None]
    check_nulls("sd3", {"text_encoder": have, "text_encoder_2": have, "text_encoder_3": null})
    check_nulls(
        "refiner", {"text_encoder": null, "text_encoder_2": have, "tokenizer": null, "tokenizer_2": have}
    )
    with pytest.raises(ConfigurationError, match="no tokenizer_2"):
        check_nulls("sdxl", {"tokenizer": have, "tokenizer_2": null})


@pytest.mark.parametrize(
    ("key", "kind"),
    [("m.hada_w1_a", "LoHa"), ("m.lokr_w1", "LoKr"), ("m.oft_blocks", "OFT"), ("m.lora_down.weight", "")],
)
def test_other_decompositions_than_lora_s_are_named(key: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({key: torch.zeros(2, 2)}, file)
    if not kind:
        refuse_lycoris("it", file)
        return
    with pytest.raises(ConfigurationError, match=f"is a {kind}, not a LoRA.*[Mm]erge"):
        refuse_lycoris("it", file)
