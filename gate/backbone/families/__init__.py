"""Families of backbones, one per file: what differs between denoisers, and nothing else.

A file here is found by itself; a stranger's package registers its class in the entry point group `gate.families`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gate.backbone.pipeline import PipelineBackbone

GROUP = "gate.families"


@functools.cache
def families() -> tuple[type[PipelineBackbone], ...]:
    """Every family that can be loaded, strangers' first: they may know better."""
    from gate.backbone.pipeline import PipelineBackbone

    found = [point.load() for point in entry_points(group=GROUP)]
    for module in pkgutil.iter_modules(__path__):
        read = importlib.import_module(f"{__name__}.{module.name}")
        found += [
            cls
            for cls in vars(read).values()
            if inspect.isclass(cls) and issubclass(cls, PipelineBackbone) and cls.__module__ == read.__name__
        ]
    return tuple(found)
