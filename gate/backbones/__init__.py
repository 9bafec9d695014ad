"""Backbones that load: families, layers, capture, the hub. `load_backbone` is the one way in.

Loaded on first use, so that a name can be checked without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gate.backbone import LayerInfo
    from gate.backbones.activations import capture
    from gate.backbones.layers import resolve_layers
    from gate.backbones.load import config_layers, load_backbone, pipeline_folder

__all__ = [
    "LayerInfo",
    "capture",
    "config_layers",
    "load_backbone",
    "pipeline_folder",
    "resolve_layers",
]
_HOMES = {
    "LayerInfo": "gate.backbone",
    "capture": "gate.backbones.activations",
    "resolve_layers": "gate.backbones.layers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gate.backbones' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES.get(name, "gate.backbones.load")), name)
    return found
