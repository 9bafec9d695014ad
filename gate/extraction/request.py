"""What is asked for, opened: the backbone, techniques fitted, layers, and images by row."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gate.backbone import Backbone, is_map
from gate.backbones import load_backbone, resolve_layers
from gate.backbones.load import choose_device
from gate.data.named import DEFAULT, find_data, load_data
from gate.data.sidecars import check_folder
from gate.errors import ConfigurationError
from gate.extraction.cache_folder import default_folder
from gate.extraction.config import ExtractConfig, command_of
from gate.extraction.engine import Work
from gate.extraction.epilogue import Epilogue
from gate.extraction.head import NAME, Amalgamated, Saved, open_head
from gate.extraction.images import open_images
from gate.extraction.latents import LatentCache
from gate.extraction.layouts import make_layout
from gate.extraction.plan import Setting, dtype_of
from gate.extraction.source import VANILLA, Source, open_source
from gate.registry import create_technique, select_techniques
from gate.runs.directory import read_run
from gate.sample import Sample, SampleSet
from gate.schedule import LEVEL
from gate.technique import Technique

if TYPE_CHECKING:
    Log = Callable[[str], None]

TRIED = 64  # images that settings are timed on, projections and techniques learned from
LAYERS, SAMPLES = ("paper",), 32


class Images(Protocol):
    """Images by row of their sorted listing: a folder's, or a named data set's. keys: their names."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, rows: slice) -> tuple[list[Sample], list[tuple[str, str]]]:
        """Samples of these rows, and (key, reason) of those that cannot be read."""
        ...

    def each(self, rows: Iterable[int], *, ahead: int) -> Generator[Sample | tuple[str, str], None, None]:
        """The same row by row, as they are asked for; up to `ahead` are decoded before."""
        ...


@dataclass(frozen=True, eq=False)
class NamedImages:
    """Samples of a named data set, by number."""

    samples: SampleSet

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"{self.samples.name}-{i:06d}" for i in range(len(self.samples)))

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows: slice) -> tuple[list[Sample], list[tuple[str, str]]]:
        return [self._named(i) for i in range(len(self))[rows]], []

    def each(self, rows: Iterable[int], *, ahead: int) -> Generator[Sample | tuple[str, str], None, None]:
        yield from (self._named(i) for i in rows)

    def _named(self, i: int) -> Sample:
        return dataclasses.replace(self.samples[i], source=self.keys[i])


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
            "timestep": work.timesteps[name],
            "seed": work.seed,
            "backbone": {
                "name": backbone.name,
                "revision": self.source.backbone.get("revision") if self.source else self.config.revision,
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
    make_layout(config.layout).holds(config.save_dtype)
    epilogue = Epilogue(
        pool=config.pool,
        resize=config.resize,
        vector=config.vector,
        normalise=config.normalise,
        project=config.project,
        projection=config.projection,
        dtype=config.save_dtype,
    )
    saved = open_head(Path(config.head).expanduser()) if config.head else None
    source = _source(config)
    names = list(source.techniques) if source else _names(config.techniques)
    ran: dict[str, Any] = dict(read_run(source.path)["config"]) if source else {}
    folder, data = _place(config, ran)
    if folder:
        check_folder(folder, captions=config.captions)
    else:
        find_data(data)
    log(f"loading {source.backbone['name'] if source else config.backbone or 'tiny'}")
    backbone = _backbone(config, source, saved)
    if source:
        source.check(backbone)
    layers = resolve_layers(config.layers or (source.layers if source else LAYERS), backbone.layer_paths)
    backbone.calibrate(layers)
    timesteps = (
        dict(source.timesteps)
        if source
        else dict.fromkeys(names, config.timestep or backbone.schedule.at(LEVEL))
    )
    for timestep in timesteps.values():
        backbone.schedule.check(timestep)
    if saved:
        layers, names = (*saved.layers, *saved.unweighted), [NAME]
        timesteps = {NAME: saved.sources[0].timestep}
    images: Images
    if folder:
        images = open_images(
            folder, size=backbone.image_size, captions=config.captions or ran.get("captions")
        )
    else:
        n = config.samples or ran.get("samples", SAMPLES)
        images = NamedImages(load_data(data, n=n, size=backbone.image_size, seed=ran.get("seed", 0)))
    classes = source.classes if source else ()
    first = _first(images, classes)
    techniques: dict[str, Technique]
    if saved:
        techniques = {NAME: Amalgamated.opened(saved, backbone, first)}
        config = config.model_copy(update={"seed": saved.seed})
    else:
        techniques = {name: _technique(name, source, backbone, first) for name in names}
    maps = frozenset(layer for layer in layers if not saved and is_map(backbone.layer_paths[layer]))
    seed = config.seed if config.seed is not None else (source.seed if source else 0)
    work = Work(backbone, techniques, layers, timesteps, seed, epilogue, maps)
    where = default_folder()
    cache = LatentCache(where, backbone, log=log) if config.cache else None
    return Asked(config, command_of(config), work, images, first, cache, where.parent, source)


def _names(asked: tuple[str, ...]) -> list[str]:
    """Of techniques that are there; the plain backbone is none, and can be named all the same."""
    others = [name for name in asked if name != VANILLA]
    plain = [VANILLA] if len(others) < len(asked) or not asked else []
    return [*plain, *(select_techniques(others) if others else [])]


def _source(config: ExtractConfig) -> Source | None:
    if config.run is None:
        return None
    top = 0 if config.techniques else config.top or 1
    return open_source(config.run, top=top, techniques=config.techniques, timestep=config.timestep)


def _place(config: ExtractConfig, ran: dict[str, Any]) -> tuple[str, str]:
    """The images' folder, or "" and the name of a data set: as asked, else those of the run."""
    if config.images or config.data:
        return config.images or "", config.data or ""
    return ran.get("images") or "", ran.get("data") or DEFAULT


def _backbone(config: ExtractConfig, source: Source | None, saved: Saved | None) -> Backbone:
    given: dict[str, Any] = {
        "name": config.backbone or (saved.backbone if saved else "tiny"),
        "revision": config.revision,
        "pipeline": config.pipeline,
        "image_size": config.image_size or (saved.image_size if saved else None),
        "dtype": "auto",
        "device": config.device,
        "offload": config.offload,
    }
    if source:
        given |= source.backbone
        given |= {"device": config.device if config.device != "auto" else given["device"]}
        given |= {"offload": config.offload or given["offload"]}
    asked = config.dtype if config.dtype != "auto" or config.precision == "fast" else given["dtype"]
    return load_backbone(
        **given | {"dtype": dtype_of(config.precision, choose_device(given["device"]), asked)}
    )


def _first(images: Images, classes: tuple[str, ...]) -> SampleSet:
    samples, _ = images.read(slice(0, min(TRIED, len(images))))
    if not samples:
        raise ConfigurationError(f"None of the first {TRIED} images can be read; repair or remove them.")
    return SampleSet(tuple(samples), name="images", classes=classes)


def _technique(name: str, source: Source | None, backbone: Backbone, first: SampleSet) -> Technique:
    """Fitted: by the run that it comes from, else on the first images."""
    if name == VANILLA:
        return Technique()
    technique = source.technique(name) if source else create_technique(name)
    visible = technique.visible(first)
    technique.check(backbone, visible)
    if not source:
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
