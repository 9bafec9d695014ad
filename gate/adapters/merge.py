"""Weights that stand in for a backbone's own for a while, and LoRA files as such weights.

A LoRA is merged once, by diffusers and peft, into copies; attaching it swaps tensors and costs nothing per call.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gate.adapters.formats import LORA_FILE
from gate.adapters.lycoris import inject, lycoris_kind
from gate.adapters.networks import load_tensors, local_file
from gate.backbones.hub import CONVERT_FILE, PICKLES, read_config
from gate.backbones.whole import matter
from gate.errors import ConfigurationError, MissingWeightsError, UsageError

if TYPE_CHECKING:
    from gate.backbone import Backbone

ADAPTER = "gate"
PEFT, PEFT_FILE, PEFT_CONFIG = "base_model.model.", "adapter_model.safetensors", "adapter_config.json"
PEFT_FACTS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "use_dora")
HALVES = (
    ("lora_A", "lora_B"),
    ("lora_B", "lora_A"),
    (".down.", ".up."),
    (".up.", ".down."),
)  # of a LoRA's keys


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
    usual one. Any layout that diffusers reads (its own, kohya's, peft's), DoRA, and LoHa and LoKr by peft's layers.
    Raises MissingWeightsError, UsageError, ConfigurationError where the file is none of these for this backbone.
    """
    file = local_file(*locate(source, weight_name), "LoRA")
    parts: dict[str, Any] = dict(backbone.components)
    tensors = load_tensors(file)
    if lycoris_kind(tensors):
        return _merged(backbone, source, scale, lambda: inject(parts, tensors, source, ADAPTER))
    state, alphas, metadata = _state(source, file, parts)
    _check_layers(source, state, backbone)

    def wrap() -> None:
        Loader.load_lora_into_unet(state, alphas, parts["unet"], adapter_name=ADAPTER, metadata=metadata)
        for part in parts:
            if part.startswith("text_encoder") and any(key.startswith(f"{part}.") for key in state):
                Loader.load_lora_into_text_encoder(
                    state, alphas, parts[part], prefix=part, adapter_name=ADAPTER, metadata=metadata
                )

    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    return _merged(backbone, source, scale, wrap)


def _state(source: str, file: Path, parts: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any, Any]:
    """The tensors under diffusers' names, the alphas and the metadata, as its loader takes them."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    try:
        state, alphas, metadata = Loader.lora_state_dict(
            str(file.parent),
            weight_name=file.name,
            use_safetensors=True,
            local_files_only=True,
            unet_config=parts["unet"].config,
            return_lora_metadata=True,
        )
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ConfigurationError(
            f"{source!r} is no LoRA that diffusers reads: {matter(error)} is wrong or missing; fetch it again."
        ) from error
    if not any(key.startswith((*(f"{part}." for part in parts), "transformer.")) for key in state):
        state = {f"unet.{key}": value for key, value in state.items()}  # a denoiser's own `save_attn_procs`
        alphas = {f"unet.{key}": value for key, value in (alphas or {}).items()} or alphas
    if all(key.startswith(f"unet.{PEFT}") for key in state):
        config = read_config(source, file.parent / PEFT_CONFIG)
        metadata = {f"unet.{key}": config[key] for key in PEFT_FACTS if key in config}
        state = {key.replace(PEFT, ""): value for key, value in state.items()}
    if metadata:  # peft imports the module that `megatron_core` names
        metadata = {key: value for key, value in metadata.items() if "megatron" not in key}
    return state, alphas, metadata


def _merged(backbone: Backbone, source: str, scale: float, wrap: Callable[[], None]) -> dict[str, Tensor]:
    """What `wrap` and a merge make of the backbone's parameters, those that change alone; the backbone is as before."""
    parts: dict[str, Any] = dict(backbone.components)
    before = {name: parameter.detach().clone() for name, parameter in _parameters(backbone).items()}
    marks = {name: dict(vars(module)) for name, module in parts.items()}
    try:
        wrap()
        _merge(parts, scale)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise ConfigurationError(f"{source!r} is no LoRA for {backbone.name}: {matter(error)}") from error
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


def _check_layers(source: str, state: Mapping[str, Tensor], backbone: Backbone) -> None:
    """Raise ConfigurationError where half of a pair lacks, or a layer is none of the backbone's.

    Diffusers leaves out what it does not know, and what has no partner, with a line in a log.
    """
    for key in state:
        for one, other in HALVES:
            partner = key.replace(one, other)
            if one in key and partner not in state:
                raise ConfigurationError(
                    f"{source!r} lacks {partner}, without which {key} does nothing; fetch it again."
                )
    for part, module in backbone.components.items():
        names = dict(module.named_modules())
        for key in state:
            head, _, path = key.replace(".processor.", ".").partition(".")
            path = re.sub(r"self_attn\.to_(q|k|v|out)_", r"self_attn.\1_proj_", path)  # an older layout
            path = re.split("[._]lora", path.replace("_proj_lora", "_proj.lora"))[0]
            if head == part and "lora" in key and not {path, path.removeprefix("text_model.")} & set(names):
                raise ConfigurationError(
                    f"{source!r} has weights for {path}, which the {part} of {backbone.name} does not have; it was "
                    "made for another backbone."
                )


def locate(source: str, weight_name: str) -> tuple[str, str]:
    """Folder or hub id, and the file in it; a local file always gets its own name. Refuses what is no safetensors."""
    path = Path(source).expanduser()
    if path.is_file():
        where, file = str(path.parent), path.name
    elif path.is_dir():
        where, file = str(path), weight_name or LORA_FILE
        pickled = [found.name for found in sorted(path.glob("*")) if found.suffix in PICKLES]
        if pickled and not any(path.glob("*.safetensors")):
            raise UsageError(
                f"{source} holds pickled weights ({pickled[0]}), which are never loaded. {CONVERT_FILE}."
            )
        if not weight_name and not (path / file).is_file() and (path / PEFT_FILE).is_file():
            file = PEFT_FILE
        if not (path / file).is_file():
            raise MissingWeightsError(f"{source} holds no {file}; name the file with weight_name.")
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        where, file = source, weight_name or LORA_FILE
    else:
        raise UsageError(f"{source!r} is neither a file, a folder nor a hub id.")
    if not file.endswith(".safetensors"):
        raise UsageError(
            f"{file} is not a safetensors file; pickled weights are never loaded. {CONVERT_FILE}."
        )
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
