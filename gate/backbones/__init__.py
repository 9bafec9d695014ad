"""Backbones that load: families, layers, capture, the hub. `load_backbone` is the one way in."""

from gate.backbone import LayerInfo
from gate.backbones.capture import capture
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
