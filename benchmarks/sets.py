"""The sets of layers that people extract, as ids of each kind of denoiser."""

from __future__ import annotations

from gate.backbone import Backbone
from gate.backbones.layers import resolve_layers

LEGACY = (  # what generic-diffusion-feature calls legacy: the last activation of every level
    "up-level0-upsampler-out",
    "up-level1-upsampler-out",
    "up-level2-upsampler-out",
    "up-level3-repeat2-vit-out",
)
NAMES = ("dift", "practical", "legacy", "maps")


def layers_of(name: str, backbone: Backbone) -> tuple[str, ...]:
    """The ids of a set on this denoiser. A transformer has no levels: its legacy set is its last block's output."""
    known = backbone.layer_paths
    unet = hasattr(backbone.denoiser, "down_blocks")
    if name == "maps":
        crosses = [layer for layer in known if layer.endswith("cross.map")]
        wanted: tuple[str, ...] = (
            ("up2.attention1.block0.cross.map",) if unet else (crosses[len(crosses) // 2],)
        )
    elif name == "legacy":
        wanted = LEGACY if unet else ([layer for layer in known if layer.startswith("block")][-1],)
    else:
        wanted = (name,)
    return resolve_layers(wanted, known)
