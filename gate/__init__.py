"""gate: which generation techniques pull diffusion features back to the image they came from."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gate.version import __version__

_HOMES = {
    "screen": "gate.screening",
    "Screening": "gate.screening",
    "ScreenConfig": "gate.screening.config",
    "extract": "gate.extraction",
    "load_features": "gate.extraction",
    "FeatureExtractor": "gate.extraction",
    "load_backbone": "gate.backbones",
    "capture": "gate.backbones",
    "Backbone": "gate.backbone",
    "list_techniques": "gate.registry",
    "create_technique": "gate.registry",
    "Technique": "gate.technique",
    "Cost": "gate.technique",
    "Probe": "gate.probe",
    "Metric": "gate.metric",
    "Sample": "gate.sample",
    "SampleSet": "gate.sample",
    "GateError": "gate.errors",
}
__all__ = [
    "Backbone",
    "Cost",
    "FeatureExtractor",
    "GateError",
    "Metric",
    "Probe",
    "Sample",
    "SampleSet",
    "ScreenConfig",
    "Screening",
    "Technique",
    "__version__",
    "capture",
    "create_technique",
    "extract",
    "list_techniques",
    "load_backbone",
    "load_features",
    "screen",
]

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.backbones import capture, load_backbone
    from gate.errors import GateError
    from gate.extraction import FeatureExtractor, extract, load_features
    from gate.metric import Metric
    from gate.probe import Probe
    from gate.registry import create_technique, list_techniques
    from gate.sample import Sample, SampleSet
    from gate.screening import Screening, screen
    from gate.screening.config import ScreenConfig
    from gate.technique import Cost, Technique


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # loaded on first use: `gate --help` needs no torch
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
