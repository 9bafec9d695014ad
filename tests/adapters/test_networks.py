"""Networks beside the denoiser whose files are broken: a sentence with the file, the matter and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import T2IAdapter
from safetensors.torch import load_file, save_file

from gate.adapters.networks import load_network
from gate.backbone import Backbone
from gate.errors import ConfigurationError, GateError, MissingWeightsError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _lost(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state[min(state)]
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def _bent(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({**state, min(state): torch.zeros(2, 2)}, folder / WEIGHTS, metadata={"format": "pt"})


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:300])


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename((folder / WEIGHTS).with_suffix(".bin"))


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


BROKEN: dict[str, tuple[Callable[[Path], None], type[GateError], str]] = {
    "a tensor lacks": (
        _lost,
        ConfigurationError,
        r"weights in net of .* lack adapter\..*fetch that file again",
    ),
    "a shape is another": (_bent, ConfigurationError, r"do not fit its config.*shape.*fetch that file again"),
    "the file is cut": (_cut, ConfigurationError, r"is cut short.*fetch that file again"),
    "the file is pickled": (_pickled, ConfigurationError, r"is pickled \(net/.*\.bin\)"),
    "the config is no JSON": (_no_json, ConfigurationError, r"net/config\.json of .* is no JSON"),
    "there is no file": (
        lambda folder: (folder / WEIGHTS).unlink(),
        MissingWeightsError,
        "the folder is not complete",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_network_is_one_sentence(what: str, tiny: Backbone, tmp_path: Path) -> None:
    damage, error, said = BROKEN[what]
    folder = tmp_path / "net"
    T2IAdapter(channels=(8, 8), num_res_blocks=1, downscale_factor=4).save_pretrained(folder)
    assert load_network(T2IAdapter, str(folder), "T2I-Adapter", tiny).training is False
    damage(folder)
    with pytest.raises(error, match=said):
        load_network(T2IAdapter, str(folder), "T2I-Adapter", tiny)
