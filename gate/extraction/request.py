"""What is asked for, opened: the backbone, techniques fitted, layers, and images by row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gate.backbone import Backbone, is_map
from gate.backbones import load_backbone, resolve_layers
from gate.backbones.load import choose_device
from gate.data.named import DEFAULT, find_data, load_data
from gate.errors import ConfigurationError
from gate.extraction.config import ExtractConfig, command_of
from gate.extraction.engine import Work
from gate.extraction.epilogue import Epilogue
from gate.extraction.images import open_images
from gate.extraction.latents import LatentCache, cache_folder
from gate.extraction.plan import Setting, dtype_of
from gate.extraction.source import Source, open_source
from gate.registry import create_technique, select_techniques
from gate.sample import Sample, SampleSet
from gate.technique import Technique

if TYPE_CHECKING:
    Log = Callable[[str], None]

TRIED = 64  # images that settings are timed on, projections and techniques learned from
TIMESTEP, LAYERS = 50, ("paper",)
VANILLA = "vanilla"


class Images(Protocol):
    """Images by row of their sorted listing: a folder's, or a named data set's. keys: their names."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, rows: slice) -> tuple[list[Sample], list[tuple[str, str]]]:
        """Samples of these rows, and (key, reason) of those that cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class NamedImages:
    """Samples of a named data set, `source` being their key."""

    samples: SampleSet

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(s.source for s in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows: slice) -> tuple[list[Sample], list[tuple[str, str]]]:
        return list(self.samples[rows]), []


@dataclass(frozen=True, eq=False)
class Asked:
    """An extraction, ready to be planned. first: the first images that can be read. cache: of latents. memory: a folder
    in which the fastest settings are remembered. source: the run, where there is one."""

    config: ExtractConfig
    command: str
    work: Work
    images: Images
    first: SampleSet
    cache: LatentCache | None
    memory: Path
    source: Source | None

    def facts(self, name: str, work: Work, setting: Setting) -> dict[str, Any]:
        """Everything that decides the numbers of a technique's store."""
        backbone, technique = work.backbone, work.techniques[name]
        return {
            "technique": name,
            "settings": technique.settings,
            "state": _digest(technique.state()),
            "layers": list(work.layers),
            "timestep": work.timestep,
            "seed": work.seed,
            "backbone": {
                "name": backbone.name,
                "revision": self.source.revision if self.source else self.config.revision,
                "family": backbone.family,
                "image_size": backbone.image_size,
                "weights": backbone.fingerprint(),
            },
            "precision": self.config.precision,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "channels_last": setting.channels_last,
            "compiled": setting.compiled,
            "epilogue": work.epilogue.describe(),
        }


def prepare(config: ExtractConfig, log: Log = lambda _: None) -> Asked:
    """Raises UsageError, ConfigurationError, MissingWeightsError, UnsuitableError, IncomparableError."""
    source = (
        open_source(Path(config.run), top=config.top or 1, techniques=config.techniques)
        if config.run
        else None
    )
    names = list(source.names) if source else select_techniques(config.techniques or (VANILLA,))
    if not source and config.images is None:
        find_data(config.data or DEFAULT)
    log(f"loading {source.backbone['name'] if source else config.backbone or 'tiny'}")
    backbone = _backbone(config, source)
    if source:
        source.check(backbone)
    layers = resolve_layers(config.layers or (source.layers if source else LAYERS), backbone.layer_paths)
    backbone.calibrate(layers)
    timestep = config.timestep or (source.timestep if source else TIMESTEP)
    backbone.schedule.check(timestep)
    images = _images(config, source, backbone.image_size)
    first = _first(images)
    techniques = {name: _technique(name, source, backbone, first) for name in names}
    epilogue = Epilogue(
        pool=config.pool,
        resize=config.resize,
        normalise=config.normalise,
        project=config.project,
        projection=config.projection,
        dtype=config.save_dtype,
    )
    maps = frozenset(layer for layer in layers if is_map(backbone.layer_paths[layer]))
    seed = config.seed if config.seed is not None else (source.seed if source else 0)
    work = Work(backbone, techniques, layers, timestep, seed, epilogue, maps)
    cache = LatentCache(cache_folder() / "latents", backbone) if config.cache else None
    return Asked(config, command_of(config), work, images, first, cache, cache_folder() / "settings", source)


def _backbone(config: ExtractConfig, source: Source | None) -> Backbone:
    device = choose_device(config.device)
    given: dict[str, Any] = (
        dict(source.backbone)
        if source
        else {
            "name": config.backbone or "tiny",
            "revision": config.revision,
            "pipeline": config.pipeline,
            "image_size": config.image_size,
        }
    )
    asked = (
        config.dtype if config.dtype != "auto" or config.precision == "fast" else given.pop("dtype", "auto")
    )
    given = {k: v for k, v in given.items() if k in ("name", "revision", "pipeline", "image_size")}
    return load_backbone(
        **given, device=str(device), dtype=dtype_of(config.precision, device, asked), offload=config.offload
    )


def _images(config: ExtractConfig, source: Source | None, size: int) -> Images:
    if config.images or (source and source.images and not config.data):
        return open_images(str(config.images or source.images), size=size, captions=config.captions)  # type: ignore[union-attr]
    name = config.data or (source.data if source else DEFAULT) or DEFAULT
    n = config.samples or (source.samples if source else 32)
    return NamedImages(load_data(name, n=n, size=size, seed=source.data_seed if source else 0))


def _first(images: Images) -> SampleSet:
    samples, _ = images.read(slice(0, min(TRIED, len(images))))
    if not samples:
        raise ConfigurationError(f"None of the first {TRIED} images can be read; repair or remove them.")
    return SampleSet(tuple(samples), name="images")


def _technique(name: str, source: Source | None, backbone: Backbone, first: SampleSet) -> Technique:
    """Fitted: by the run that it comes from, else on the first images."""
    if name == VANILLA:
        return Technique()
    technique = source.technique(name) if source else create_technique(name)
    visible = technique.visible(first)
    technique.check(backbone, visible)
    if not source or not technique.state():
        technique.fit(backbone, visible)
    return technique


def _digest(state: dict[str, Tensor]) -> str:
    """Of what was learned; "" where nothing was."""
    if not state:
        return ""
    found = hashlib.blake2b(digest_size=8)
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        found.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
