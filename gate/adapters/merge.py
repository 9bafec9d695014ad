"""Weights that stand in for a backbone's own for a while, and LoRA files as such weights.

A LoRA is merged once, by diffusers and peft, into copies; attaching it swaps tensors and costs nothing per call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gate.adapters.formats import LORA_FILE
from gate.errors import ConfigurationError, MissingWeightsError, UsageError

if TYPE_CHECKING:
    from gate.backbone import Backbone

ADAPTER = "gate"
LYCORIS = {  # how keys of LyCORIS's and peft's other decompositions read
    "hada_w1": "LoHa",
    "lokr_w1": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
}


@contextlib.contextmanager
def swapped(backbone: Backbone, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The backbone with some parameters replaced; its own tensors come back bit for bit.

    weights: {"unet.path.to.weight": tensor}, of the parameter's shape, dtype and device.
    """
    if not weights:
        yield
        return
    own = _parameters(backbone)
    held = {name: own[name].data for name in weights}
    try:
        for name, value in weights.items():
            own[name].data = value
        with backbone.prompts_anew():
            yield
    finally:
        for name, value in held.items():
            own[name].data = value


def _parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    return {
        f"{part}.{name}": parameter
        for part, module in backbone.components.items()
        for name, parameter in module.named_parameters()
    }


def lora_weights(backbone: Backbone, source: str, weight_name: str, scale: float) -> dict[str, Tensor]:
    """The parameters that a LoRA changes, as they are with it: W + scale alpha / rank B A (Hu et al. 2022, Eq. 3).

    source: a safetensors file, a folder, or a hub id; weight_name: the file in a folder or repository, "" for the
    usual one. Any layout that diffusers reads (its own, kohya's). Raises MissingWeightsError, UsageError where the
    file is no LoRA for this backbone.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
    from safetensors import SafetensorError

    where, file = locate(source, weight_name)
    refuse_lycoris(source, Path(where) / file)
    parts: dict[str, Any] = dict(backbone.components)
    unet = parts["unet"]
    try:
        state, alphas, metadata = Loader.lora_state_dict(
            where,
            weight_name=file,
            use_safetensors=True,
            local_files_only=True,
            unet_config=unet.config,
            return_lora_metadata=True,
        )
    except OSError as error:
        raise MissingWeightsError(
            f"The LoRA {source!r} is not on this machine; fetch it with: hf download {source}"
        ) from error
    except SafetensorError as error:
        raise ConfigurationError(
            f"{source!r} is cut short, or holds no safetensors, whatever its name says (pickled weights are never "
            "loaded); fetch it again."
        ) from error
    if not any(key.startswith((*(f"{part}." for part in parts), "transformer.")) for key in state):
        state = {f"unet.{key}": value for key, value in state.items()}  # a denoiser's own `save_attn_procs`
        alphas = {f"unet.{key}": value for key, value in (alphas or {}).items()} or alphas
    if metadata:  # peft imports the module that `megatron_core` names
        metadata = {key: value for key, value in metadata.items() if "megatron" not in key}
    before = {name: parameter.detach().clone() for name, parameter in _parameters(backbone).items()}
    marks = {name: dict(vars(module)) for name, module in parts.items()}
    try:
        Loader.load_lora_into_unet(state, alphas, unet, adapter_name=ADAPTER, metadata=metadata)
        for part in parts:
            if part.startswith("text_encoder") and any(key.startswith(f"{part}.") for key in state):
                Loader.load_lora_into_text_encoder(
                    state, alphas, parts[part], prefix=part, adapter_name=ADAPTER, metadata=metadata
                )
        _merge(parts, scale)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"{source!r} is no LoRA for {backbone.name}: {first}") from error
    finally:
        unload(parts, marks)
        changed = {}
        for name, parameter in _parameters(backbone).items():
            if not torch.equal(parameter, before[name]):
                changed[name] = parameter.detach().clone()
            parameter.data.copy_(before[name])  # equal ones too: a zero may have lost its sign
    if not changed and scale:
        raise ConfigurationError(
            f"{source!r} changes nothing in {backbone.name}; it was made for another backbone."
        )
    return changed


def refuse_lycoris(source: str, file: Path) -> None:
    """Raise ConfigurationError where a file on this machine holds another decomposition than LoRA's, by its keys.

    A LoCon (LoRA of convolutions too) is LoRA. Diffusers would leave the others out, or stop at their first key.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return
    try:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
    except SafetensorError:  # whoever reads it says so
        return
    kind = next((what for mark, what in LYCORIS.items() if any(mark in key for key in keys)), "")
    if kind:
        raise ConfigurationError(
            f"{source!r} is a {kind}, not a LoRA, and diffusers does not load it. Merge it into a model with the "
            "tool that trained it and screen that model, or extract a LoRA of the difference."
        )


def locate(source: str, weight_name: str) -> tuple[str, str]:
    """Folder or hub id, and the file in it; a local file always gets its own name. Refuses what is no safetensors."""
    path = Path(source).expanduser()
    if path.is_file():
        where, file = str(path.parent), path.name
    elif path.is_dir():
        where, file = str(path), weight_name or LORA_FILE
        if not (path / file).is_file():
            raise MissingWeightsError(f"{source} holds no {file}; name the file with weight_name.")
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        where, file = source, weight_name or LORA_FILE
    else:
        raise UsageError(f"{source!r} is neither a file, a folder nor a hub id.")
    if not file.endswith(".safetensors"):
        raise UsageError(f"{file} is not a safetensors file; pickled weights are never loaded.")
    return where, file


def _merge(parts: Mapping[str, Any], scale: float) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in parts.values():
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.scale_layer(scale)
                layer.merge()


def unload(parts: Mapping[str, Any], marks: Mapping[str, Mapping[str, Any]]) -> None:
    """Take the wrappers off, and with them every attribute that they brought or changed since `marks`."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    for name, module in parts.items():
        recurse_remove_peft_layers(module)
        for key, value in list(vars(module).items()):
            if key not in marks[name]:
                delattr(module, key)
            elif value is not marks[name][key]:
                vars(module)[key] = marks[name][key]
