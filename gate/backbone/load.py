"""From a name to a backbone: `tiny`, a local pipeline folder, or a hub id. Safetensors only, no remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gate.backbone.contract import Backbone
from gate.backbone.layers import LayerInfo, unet_layers
from gate.backbone.memory import keep_freed_memory
from gate.errors import ConfigurationError, MissingWeightsError, UsageError

EMBEDDED = Path(__file__).parent.parent / "tiny" / "weights"
HUB_FILES = [  # the parts in full precision, and nothing else of a repository that may hold tens of gigabytes
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    "*/config.json",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU; anything else is taken at its word."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"Device {device!r} is not usable here; try --device auto or cpu.") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is float16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UsageError(f"Dtype {dtype!r} is not served; choose auto, {', '.join(known)}.")
    return known[dtype]


def pipeline_folder(name: str) -> Path:
    """The folder of a backbone: embedded, local, or in the hub's cache (fetched where the network allows)."""
    if name == "tiny":
        return EMBEDDED
    local = Path(name).expanduser()
    if local.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        if (local / "model_index.json").is_file():
            return local
        raise UsageError(
            f"Unknown backbone {name!r}: it is neither 'tiny', a hub id such as "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5', nor a folder with a model_index.json."
        )
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
    except Exception:  # not in the cache, in any of the hub's ways to say so: ask the network next
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except GatedRepoError as error:
        raise MissingWeightsError(
            f"{name} is gated: accept its licence at huggingface.co/{name}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"Unknown backbone {name!r}: the hub has no such model.") from error
    except Exception as error:
        raise MissingWeightsError(
            f"{name} is not on this machine and the hub could not be reached; on a machine with a network run: "
            f"hf download {name}"
        ) from error


def read_index(name: str, folder: Path) -> dict[str, Any]:
    """The pipeline's model_index.json."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise MissingWeightsError(
            f"The backbone {name} has no readable model_index.json in its folder."
        ) from error
    if not isinstance(index, dict):
        raise ConfigurationError(f"The model_index.json of {name} is not an object.")
    return index


def load_backbone(name: str = "tiny", *, device: str = "auto", dtype: str = "auto") -> Backbone:
    """A backbone by name. Raises UsageError, ConfigurationError or MissingWeightsError."""
    from gate.backbone.unet import LatentUNet, check_index

    folder = pipeline_folder(name)
    index = read_index(name, folder)
    check_index(name, index)
    where = choose_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    return LatentUNet(name, folder, index, device=where, dtype=choose_dtype(dtype, where))


def config_layers(name: str) -> list[LayerInfo]:
    """The layers of a backbone without its weights: from its UNet's config. name: as for `load_backbone`."""
    folder = pipeline_folder(name)
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    return unet_layers(config)
