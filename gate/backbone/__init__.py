"""Backbones: what is screened on. `load_backbone` is the one way in."""

from gate.backbone.capture import capture
from gate.backbone.contract import Backbone, pixels
from gate.backbone.layers import LayerInfo, resolve_layers
from gate.backbone.load import config_layers, load_backbone, pipeline_folder

__all__ = [
    "Backbone",
    "LayerInfo",
    "capture",
    "config_layers",
    "load_backbone",
    "pipeline_folder",
    "pixels",
    "resolve_layers",
]
