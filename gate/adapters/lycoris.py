"""LyCORIS files (Yeh et al. 2024): LoHa and LoKr, as layers of peft; the other kinds are refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gate.errors import ConfigurationError

# how keys read, by kind; of a LoCon, which is a LoRA of convolutions too, they are LoRA's
MARKS = {
    "hada_w1": "LoHa",
    "lokr_w": "LoKr",
    "boft_": "BOFT",
    "oft_": "OFT",
}
SERVED = ("LoHa", "LoKr")
TENSORS = re.compile(r"(hada|lokr)_(w[12](_[ab])?|t[12])|alpha")
PREFIXES = {
    "lora_unet": ("unet",),
    "lora_te": ("text_encoder",),
    "lora_te1": ("text_encoder",),
    "lora_te2": ("text_encoder_2",),
}
INSTEAD = (
    "Merge it into a model with the tool that trained it and screen that model, or extract a LoRA of the "
    "difference."
)


def lycoris_kind(keys: Any) -> str:
    """LoHa, LoKr, OFT, BOFT: what the keys of a file say it is; "" where it is none of them."""
    return next((kind for mark, kind in MARKS.items() if any(mark in key for key in keys)), "")


def inject(parts: Mapping[str, nn.Module], state: Mapping[str, Tensor], source: str, adapter: str) -> None:
    """Wrap the layers that a file changes, with its tensors in them: W + alpha / rank (w1a w1b) * (w2a w2b) for LoHa
    (Hyeon-Woo et al. 2022, Eq. 4), and the Kronecker product of w1 and w2 for LoKr, without alpha where both are whole.

    Raises ConfigurationError for another kind, layout or layer.
    """
    from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model

    kind = lycoris_kind(state)
    if kind not in SERVED:
        raise ConfigurationError(
            f"{source!r} holds {kind} weights, not a LoRA's, and peft does not read them as they are. {INSTEAD}"
        )
    layers = _layers(parts, state, source, kind)
    for part, module in parts.items():
        mine = {path: tensors for (home, path), tensors in layers.items() if home == part}
        if mine:
            config = (LoHaConfig if kind == "LoHa" else LoKrConfig)(r=1, alpha=1, target_modules=list(mine))
            inject_adapter_in_model(config, module, adapter)
        for path, tensors in mine.items():
            _fill(module.get_submodule(path), tensors, adapter, f"{path} of {source!r}")


def _layers(
    parts: Mapping[str, nn.Module], state: Mapping[str, Tensor], source: str, kind: str
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """{(part, path of the layer): {name: tensor}}; kohya's names have underscores for dots."""
    known = {
        f"{prefix}_{head}{path.replace('.', '_')}": (part, path)
        for prefix, homes in PREFIXES.items()
        for part in homes
        if part in parts
        for path, module in parts[part].named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        for head in ("", "text_model_")
    }
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, tensor = key.partition(".")
        if not TENSORS.fullmatch(tensor) or name not in known:
            raise ConfigurationError(
                f"{source!r} is a {kind} with {key}, which is no layer of this backbone under kohya's names, or no "
                f"tensor of a plain {kind}. {INSTEAD}"
            )
        found.setdefault(known[name], {})[tensor] = value
    return found


def _fill(layer: Any, tensors: Mapping[str, Tensor], adapter: str, what: str) -> None:
    """The file's tensors in the place of those that peft made, and its scaling."""
    for name in layer.adapter_layer_names:
        table = getattr(layer, name)
        if adapter in table:
            del table[adapter]
        if name in tensors:
            table[adapter] = nn.Parameter(
                tensors[name].to(layer.get_base_layer().weight), requires_grad=False
            )
    factors = [tensors[name] for name in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b") if name in tensors]
    rank = factors[0].shape[0] if factors else 1
    alpha = float(tensors["alpha"]) if factors and "alpha" in tensors else float(rank)
    layer.r[adapter], layer.alpha[adapter], layer.scaling[adapter] = rank, alpha, alpha / rank
    try:
        layer.get_delta_weight(adapter)
    except (KeyError, AttributeError, RuntimeError) as error:  # a table of parameters says it either way
        raise ConfigurationError(
            f"The tensors for {what} are not complete, or not of the layer's shape ({error}); fetch the file again."
        ) from error
