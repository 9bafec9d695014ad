"""Canonical layer ids of a diffusers UNet: read off the modules, so that every activation has exactly one name.

`in`, `down1`, `down1.resnet0`, `down1.attention0`, `down1.downsample`, `mid`, `mid.attention0`, `up2`,
`up2.resnet1`, `up2.attention1`, `up2.attention1.block0.cross.q`, `up2.upsample`, `out`.
A block's own id (`up2`) is its output, after the upsampler; DIFT's `up_ft_index` i is `up{i}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gate.errors import ConfigurationError, unknown_name

PAPER_LAYERS = ("up0", "up1", "up2", "up3")  # the output of each resolution of the up path (paper, section 3)

_BLOCKS = (
    (r"conv_in", "in"),
    (r"conv_out", "out"),
    (r"down_blocks\.(\d+)", r"down\1"),
    (r"mid_block", "mid"),
    (r"up_blocks\.(\d+)", r"up\1"),
)
_INNER = (
    (r"resnets\.(\d+)", r"resnet\1"),
    (r"attentions\.(\d+)", r"attention\1"),
    (r"downsamplers\.0", "downsample"),
    (r"upsamplers\.0", "upsample"),
)
_DEEP = (
    (r"transformer_blocks\.(\d+)", r"block\1"),
    (r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])", r"block\1.self.\2"),
    (r"transformer_blocks\.(\d+)\.attn2\.to_q", r"block\1.cross.q"),
    (r"transformer_blocks\.(\d+)\.ff", r"block\1.ff"),
)


def layer_paths(denoiser: nn.Module) -> dict[str, str]:
    """Layer id -> module path, in the order of the modules. denoiser: a UNet; meta weights will do."""
    found = {}
    for path, _ in denoiser.named_modules():
        layer = layer_id(path)
        if layer is not None:
            found[layer] = path
    return found


def layer_id(path: str) -> str | None:
    """The id of a module path, or None where the module is not a layer."""
    for pattern, name in _BLOCKS:
        block = re.match(pattern + r"(?:\.|$)", path)
        if block is None:
            continue
        head = re.sub(pattern, name, block[0].rstrip("."))
        rest = path[block.end() :]
        if not rest:
            return head
        for inner, inner_name in _INNER:
            match = re.match(inner + r"(?:\.|$)", rest)
            if match is None:
                continue
            head = f"{head}.{re.sub(inner, inner_name, match[0].rstrip('.'))}"
            deep = rest[match.end() :]
            if not deep:
                return head
            for deeper, deep_name in _DEEP:
                if re.fullmatch(deeper, deep):
                    return f"{head}.{re.sub(deeper, deep_name, deep)}"
    return None


@dataclass(frozen=True)
class LayerInfo:
    """One layer: its id, module path, channels, stride against the latent, and the block that holds it."""

    id: str
    path: str
    channels: int
    stride: int
    block: str


def resolve_layers(wanted: Iterable[str], known: Mapping[str, str]) -> tuple[str, ...]:
    """Layer ids for names and the preset `paper`; an unknown name is an error with near matches."""
    chosen: dict[str, None] = {}
    for name in wanted:
        for layer in [p for p in PAPER_LAYERS if p in known] if name == "paper" else [name]:
            if layer not in known:
                raise unknown_name("layer", layer, known, listing="gate list layers")
            chosen[layer] = None
    if not chosen:
        raise ConfigurationError(
            "No layer is chosen: this denoiser's layers have no names here; only UNets' have."
        )
    return tuple(chosen)


def unet_layers(config: Mapping[str, Any]) -> list[LayerInfo]:
    """Every layer of a UNet2DConditionModel config, with channels and stride; needs no weights.

    The model is built and run once on the meta device: shapes only.
    """
    from diffusers import UNet2DConditionModel

    from gate.backbone.capture import capture

    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(dict(config))
        side = int(config.get("sample_size") or 64)
        x = torch.empty(1, int(config["in_channels"]), side, side)
        text = torch.empty(1, 8, int(config["cross_attention_dim"]))
        t = torch.zeros(1, dtype=torch.long)
        paths = layer_paths(model)
        with torch.no_grad(), capture(model, paths) as features:
            model(x, t, encoder_hidden_states=text, return_dict=False)
            rows = [(k, p, features[k]) for k, p in paths.items() if k in features]
    return [LayerInfo(k, p, f.shape[1], max(1, side // f.shape[-1]), k.split(".")[0]) for k, p, f in rows]
