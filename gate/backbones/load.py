"""From a name to a backbone: `tiny`, a pipeline's folder, a hub id or a safetensors file. Never pickle, never remote
code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gate.backbone import Backbone, LayerInfo
from gate.backbones.hub import (
    check_name,
    fetch,
    is_hub_id,
    missing_files,
    pipeline_folder,
    read_config,
    read_index,
    single_file,
)
from gate.errors import ConfigurationError, MissingWeightsError, UsageError
from gate.machine import keep_freed_memory

HEADS = ("unet", "transformer")
__all__ = ["choose_device", "choose_dtype", "config_layers", "load_backbone", "pipeline_folder"]


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA, then MPS, then the CPU; anything else is taken at its word."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # there are devices that hold no numbers
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"Device {device!r} is not usable here; try --device auto or cpu.") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device, half: torch.dtype = torch.float16) -> torch.dtype:
    """`auto` is `half`, what the family is at home in, on CUDA, and float32 elsewhere."""
    if dtype == "auto":
        return half if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UsageError(f"Dtype {dtype!r} is not served; choose auto, {', '.join(known)}.")
    return known[dtype]


def load_backbone(
    name: str = "tiny",
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    image_size: int | None = None,
    offload: bool = False,
    pipeline: str | None = None,
) -> Backbone:
    """A backbone by name. Raises UsageError, ConfigurationError or MissingWeightsError.

    revision: branch, tag or commit of a hub id. image_size: pixels a side, where not the model's own. offload: parts
    rest in main memory until they are called. pipeline: the folder or hub id whose configs a single file follows.
    """
    from gate.backbones.families import find_family
    from gate.backbones.index import part_names
    from gate.backbones.parts import load_parts, load_single_file
    from gate.backbones.whole import check_nulls, check_pickles

    check_name(name, revision=revision, pipeline=pipeline)
    where = choose_device(device)
    if where.type == "cpu":
        keep_freed_memory()
    source = single_file(name)
    if source is not None:
        half = choose_dtype(dtype, where)
        index, parts = load_single_file(name, source, pipeline, revision, half)
        family = find_family(name, index)
    else:
        source = pipeline_folder(name, revision)
        index = read_index(name, source)
        check_nulls(name, index)
        family = find_family(name, index)
        half = choose_dtype(dtype, where, family.half)
        names = part_names(index)
        missing = missing_files(source, index, names)
        if missing:
            for part in names:
                check_pickles(name, source / part)
            source = _completed(name, revision, missing)
        parts = load_parts(name, source, index, names, half, widened=family.widened)
    return family(
        name, source, index, parts, device=where, dtype=half, image_size=image_size, offload=offload
    )


def _completed(name: str, revision: str | None, missing: list[str]) -> Path:
    """The folder with what was missing, fetched where that is possible."""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    if not is_hub_id(name):
        raise MissingWeightsError(f"{name} is not complete in its folder: {missing[0]}{more} is missing.")
    try:
        return fetch(name, revision)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{name} lacks {missing[0]}{more} here. {error}") from error


def config_layers(name: str, revision: str | None = None) -> list[LayerInfo]:
    """The layers of a backbone without its weights: from its denoiser's config (`layers_of`)."""
    return layers_of(name, revision)[0]


def layers_of(name: str, revision: str | None = None) -> tuple[list[LayerInfo], str]:
    """The layers, and why the backbone does not load ("" where it does): `gate.capture` reads more than families call.

    name: as for `load_backbone`, or a denoiser's own config.json or its folder. Raises ConfigurationError, also for a
    scheduler whose noise levels are not known. A recorded one is loaded, where its weights are there: what its denoiser
    is told is known once its pipeline has run.
    """
    from gate.backbones.index import part_of

    path = Path(name).expanduser()
    bare = path if path.suffix == ".json" else path / "config.json"
    if bare.is_file():
        return _of_config(name, bare)
    if single_file(name):
        raise UsageError(
            f"{name} holds weights alone; list the layers of the folder or hub id whose configs it has."
        )
    folder = pipeline_folder(name, revision)
    for part in HEADS:
        file = folder / part / "config.json"
        if file.is_file():
            index = read_index(name, folder)
            config = read_config(name, file)
            cls = part_of(index, part)[1] or str(config.get("_class_name"))
            return _of_pipeline(name, revision, folder, index, cls, config)
    raise MissingWeightsError(f"{name} has no denoiser config in its folder.")


def _of_pipeline(
    name: str, revision: str | None, folder: Path, index: dict[str, Any], cls: str, config: dict[str, Any]
) -> tuple[list[LayerInfo], str]:
    from gate.backbones.families import find_family
    from gate.backbones.sketch import bare_layers, sketched_layers
    from gate.schedule import NoiseSchedule

    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        NoiseSchedule.from_config(read_config(name, scheduler))
    try:
        family = find_family(name, index)
        family.accepts(name, index, config)
        if family.widened:
            return load_backbone(name, device="cpu", revision=revision).layers(), ""
    except ConfigurationError as error:
        return bare_layers(cls, config), str(error)
    return sketched_layers(family, cls, config), ""


def _of_config(name: str, file: Path) -> tuple[list[LayerInfo], str]:
    """Of a denoiser's config alone: by the first family that can call it, else off its modules."""
    from gate.backbones.families import families
    from gate.backbones.sketch import bare_layers, sketched_layers

    config = read_config(name, file)
    if "_class_name" not in config:
        raise UsageError(f"{name} is no config of a diffusers denoiser: it has no _class_name.")
    cls, reason = str(config["_class_name"]), ""
    for family in families():
        if cls in family.denoisers:
            try:
                return sketched_layers(family, cls, config), ""
            except (
                ConfigurationError,
                TypeError,
                ValueError,
                KeyError,
                RuntimeError,
                AttributeError,
            ) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return bare_layers(cls, config), reason or f"{name} is a {cls}, which no family serves."
