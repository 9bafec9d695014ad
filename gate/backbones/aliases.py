"""Other people's names for our layers: the most used peer's ids (generic-diffusion-feature), DIFT's index, and presets.

The peer's ids are derived from ours, so that each means exactly one of our layers; its JSON layer files are read as
they are ({"up-level1-upsampler-out": true, ...}).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gate.errors import ConfigurationError, UsageError, unknown_name

PRESETS = {
    "paper": "the output of every stage of the up path; of a transformer, four depths after AdaLN",
    "practical": "what generic-diffusion-feature recommends for Stable Diffusion; of a transformer, two depths",
    "dift": "DIFT's default, the second stage of the up path; of a transformer, half its depth",
}
_PRACTICAL = (
    (
        "up1.attention1.block0.cross.q",
        "up1.resnet2",
        "up2.attention1.block0.cross.q",
        "up3.attention0.block0.self.k",
    ),
    (
        "up0.attention0.block5",
        "up0.attention0.block7",
        "up1.attention0.block0",
        "up1.attention0.block0.cross.q",
    ),
)  # Stable Diffusion 1 and 2; XL
_WORDS = (  # ours -> the peer's, applied in this order
    # an attention that is no transformer (DeepFloyd IF)
    (r"(attention\d+)\.([qkv]|map)$", r"\1.block0.cross.\2"),
    (r"^latent$", "unet-in"),
    (r"^in$", "unet-after-conv-in"),
    (r"^out$", "unet-out"),
    (r"^(down|up)(\d+)\.", r"\1-level\2-"),
    (r"^mid\.resnet", "mid-resnet"),
    (r"^mid\.attention0", "mid-vit"),
    (r"attention(\d+)", r"repeat\1-vit"),
    (r"resnet(\d+)\.increment$", r"repeat\1-res-increment"),
    (r"resnet(\d+)$", r"repeat\1-res-out"),
    (r"(down|up)sample$", r"\1sampler-out"),
    (r"^block(\d+)", r"vit-block\1"),
    (r"\.ff\.inner$", "-ffn-inner"),
    (r"(vit|block\d+)$", r"\1-out"),
    (r"\.", "-"),
)
_PEER = re.compile(
    r"unet-(in|after-conv-in|out)|(((down|up)-level\d+|mid)(-repeat\d+)?-)?"
    r"(res-(increment|out)|(down|up)sampler-out|vit-(block\d+-)?(out|(self|cross)-(q|k|v|map)|ffn-inner))"
)


def peer_name(layer: str) -> str | None:
    """The peer's id of one of our layers, or None where it has none."""
    for pattern, word in _WORDS:
        layer = re.sub(pattern, word, layer)
    return layer if _PEER.fullmatch(layer) else None


def canonical(name: str, known: Mapping[str, str]) -> str:
    """Our id behind a name: itself, a peer's id, or DIFT's `up_ft_index=1`. UsageError: an unknown peer id."""
    if name in known:
        return name
    dift = re.fullmatch(r"up_ft(?:_index)?\W?(\d+)", name)
    if dift:
        return f"up{dift[1]}"
    if "-" not in name:
        return name
    peers = _peers(tuple(known))
    if name not in peers:
        raise unknown_name("layer", name, peers or known, listing="gate list layers")
    return peers[name]


@functools.lru_cache(maxsize=8)
def _peers(known: tuple[str, ...]) -> dict[str, str]:
    """The peer's ids of these layers -> ours."""
    return {peer: layer for layer in known if (peer := peer_name(layer))}


def presets(name: str, known: Mapping[str, str]) -> list[str]:
    """The layers of a preset on this denoiser; empty where `name` is no preset. Raises ConfigurationError."""
    if name not in PRESETS:
        return []
    ups = [layer for layer in known if re.fullmatch(r"up\d+", layer)]
    if ups:
        found = {
            "paper": ups,
            "dift": ups[1:2],
            "practical": next((list(p) for p in _PRACTICAL if set(p) <= set(known)), []),
        }[name]
    else:
        depths = [layer for layer in known if re.fullmatch(r"(block|single)\d+\.adaln", layer)]
        parts = {"paper": (1, 2, 3, 4), "practical": (2, 3), "dift": (2.5,)}[name]
        places = {min(len(depths) - 1, int(len(depths) * p / 5)) for p in parts} if depths else set()
        found = [depths[i] for i in sorted(places)]
    if not found:
        raise ConfigurationError(f"The preset {name} names no layer of this denoiser; see: gate list layers")
    return found


def opened(wanted: Iterable[str]) -> tuple[str, ...]:
    """The same names, with those that JSON layer files hold in place of the files. Raises UsageError."""
    named = [read_layer_file(name) if name.endswith(".json") else [name] for name in wanted]
    return tuple(name for names in named for name in names)


def read_layer_file(file: str) -> list[str]:
    """The names in a JSON layer file: a list, or the peer's {name: wanted or not}. Raises UsageError."""
    try:
        read = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The layer file {file} cannot be read: {error}") from error
    names = [name for name, wanted in read.items() if wanted] if isinstance(read, dict) else read
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{file} names no layers; it must be a JSON list of them, or {{name: true}}.")
    return names
