"""Families of backbones, one per file: what differs between denoisers, and nothing else.

A file here is found by itself; a stranger's package registers its class in the entry point group `gate.families`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from gate.backbones.index import part_of
from gate.backbones.pipeline import PipelineBackbone
from gate.errors import ConfigurationError
from gate.plugins import tried

GROUP = "gate.families"


@functools.cache
def families() -> tuple[type[PipelineBackbone], ...]:
    """Every family that loads, strangers' first: they may know better."""
    found = [family for family in plugins().values() if not isinstance(family, str)]
    for module in pkgutil.iter_modules(__path__):
        read = importlib.import_module(f"{__name__}.{module.name}")
        found += [
            cls
            for cls in vars(read).values()
            if inspect.isclass(cls) and issubclass(cls, PipelineBackbone) and cls.__module__ == read.__name__
        ]
    return tuple(found)


@functools.cache
def plugins() -> dict[str, type[PipelineBackbone] | str]:
    """Strangers' families by name; a text is why one does not load. A broken one is listed, never fatal."""
    found: dict[str, type[PipelineBackbone] | str] = {}
    for point in entry_points(group=GROUP):
        cls, error = tried(point.load)
        if inspect.isclass(cls) and issubclass(cls, PipelineBackbone):
            found[point.name] = cls
        else:
            found[point.name] = error or f"{point.value} is not a PipelineBackbone"
    return found


def find_family(name: str, index: Mapping[str, Any]) -> type[PipelineBackbone]:
    """The family of a model_index.json, `recorded` where none of its own serves it. Raises ConfigurationError."""
    from gate.backbones.recorded.family import Recorded

    every: list[type[PipelineBackbone]] = [*families(), Recorded]
    for family in every:
        if family.serves(index):
            return family
    denoiser = part_of(index, "unet", "transformer")[1] or "no denoiser"
    raise ConfigurationError(
        f"{name} is a {index.get('_class_name', 'pipeline')} with {denoiser}, which no family serves; "
        f"the families are {', '.join(sorted(f.family for f in families()))}, and docs/add-a-family.md adds one."
    )
