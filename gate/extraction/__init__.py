"""Features by the thousand: winners of a screening, or any technique, extracted as fast as the machine allows."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ExtractConfig": "config",
    "Extraction": "job",
    "FeatureExtractor": "module",
    "FeatureStore": "dataset",
    "extract": "job",
    "load_features": "dataset",
}
__all__ = ["ExtractConfig", "Extraction", "FeatureExtractor", "FeatureStore", "extract", "load_features"]

if TYPE_CHECKING:
    from gate.extraction.config import ExtractConfig
    from gate.extraction.dataset import FeatureStore, load_features
    from gate.extraction.job import Extraction, extract
    from gate.extraction.module import FeatureExtractor


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # loaded on first use: the planner's rule needs none of it
        return getattr(importlib.import_module(f"gate.extraction.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gate.extraction' has no attribute {name!r}")
