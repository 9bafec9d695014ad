"""`gate doctor`: versions, devices, cached models, broken plug-ins, and what to do about each."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from gate.cli.list import cached_pipelines
from gate.cli.output import DebugOption, Format, FormatOption, echo_rows, flag

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "scipy",
)
LITTLE_DISK = 10 << 30  # bytes: less than a Stable Diffusion XL takes
BROKEN = 3
CLOSE = 1e-4  # share of the largest prediction by which another order of the same sums may move it
LEVEL = 2e-3  # of a noise level: some schedulers are told whole timesteps


class Check(NamedTuple):
    """One line of the report. state: ok, note or broken; todo: what to do, "" where there is nothing."""

    name: str
    state: str
    detail: str
    todo: str = ""


def doctor(
    backbone: Annotated[
        str | None, flag("Prove this backbone instead: its calls against its pipeline's own.", "", "NAME")
    ] = None,
    image_size: Annotated[int | None, flag("Pixels a side; the backbone's own by default.", "", "N")] = None,
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Look at this installation, or prove a backbone; exit with 3 where something is broken."""
    from gate.errors import UsageError

    if image_size is not None and backbone is None:
        raise UsageError("--image-size is of a backbone that is proven; give --backbone too.")
    checks = list(examine() if backbone is None else proven(backbone, image_size))
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "check": lambda r: r["name"],
        "state": lambda r: r["state"],
        "detail": lambda r: r["detail"] + (f" -> {r['todo']}" if r["todo"] else ""),
    }
    echo_rows([check._asdict() for check in checks], columns, format)
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(BROKEN)


def examine() -> Iterator[Check]:
    """Every check, in order."""
    yield from _versions()
    yield from _devices()
    yield _embedded()
    yield from _cache()
    yield from _plugins()


def proven(name: str, image_size: int | None = None) -> Iterator[Check]:
    """A line for what serves the backbone, and one for each noise level at which it was held against its pipeline."""
    from gate.backbones.load import load_backbone
    from gate.backbones.recorded.proof import prove

    backbone = load_backbone(name, image_size=image_size)
    served = "recorded from its own pipeline's call" if backbone.family == "recorded" else "by its family"
    yield Check(
        "backbone",
        "ok",
        f"{name}, family {backbone.family} ({served}), {backbone.image_size} px, {backbone.device}",
    )
    for level in prove(backbone).levels:
        off = level.prediction / (level.largest or 1.0)
        detail = (
            f"signal {level.theirs[0]:.4f}, noise {level.theirs[1]:.4f}, ours differ by {level.noise:.1e}; the "
            f"prediction (largest {level.largest:.3g}) differs by {level.prediction:.1e}"
        )
        wrong = not (off <= CLOSE and level.noise <= LEVEL)
        state = "broken" if wrong else "note" if level.prediction else "ok"
        todo = "do not trust its features; report the pipeline's class and this table" if wrong else ""
        yield Check(f"t = {level.t:g}", state, detail, todo)


def _versions() -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, version

    from gate import __version__

    yield Check("gate", "ok", f"{__version__} on Python {platform.python_version()}, {platform.system()}")
    for package in PACKAGES:
        try:
            yield Check(package, "ok", version(package))
        except PackageNotFoundError:
            yield Check(package, "broken", "not installed", f"pip install {package}")


def _devices() -> Iterator[Check]:
    try:
        import torch
    except Exception as error:  # a broken build raises what its linker happens to say
        yield Check(
            "devices", "broken", f"torch cannot be imported: {error}", "reinstall torch from pytorch.org"
        )
        return
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        yield Check(f"cuda:{i}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple's GPU")
    if not torch.cuda.is_available() and Path("/proc/driver/nvidia/version").exists():
        built = torch.version.cuda
        detail = f"a driver is there, and this torch ({'CUDA ' + built if built else 'CPU only'}) sees no GPU"
        yield Check("cuda", "note", detail, "install the torch build for your driver from pytorch.org")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cpu", "ok", f"{usable} cores, {torch.get_num_threads()} threads")


def _embedded() -> Check:
    from gate.backbones.hub import EMBEDDED, missing_files, read_index
    from gate.backbones.index import part_names
    from gate.errors import GateError

    try:
        index = read_index("tiny", EMBEDDED)
        missing = missing_files(EMBEDDED, index, part_names(index))
    except GateError as error:
        return Check("tiny", "broken", str(error), "pip install --force-reinstall gate-screen")
    if missing:
        return Check(
            "tiny", "broken", f"lacks {', '.join(missing)}", "pip install --force-reinstall gate-screen"
        )
    return Check("tiny", "ok", "the embedded backbone is complete")


def _cache() -> Iterator[Check]:
    """The hub's cache: where it is, the room left, and each pipeline in it with what it lacks."""
    import shutil

    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE)
    where = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(where).free
    offline = ", offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else ""
    few = free < LITTLE_DISK
    todo = "free some, or set HF_HOME to a larger disk" if few else ""
    yield Check("cache", "note" if few else "ok", f"{root}, {free / 2**30:.0f} GiB free{offline}", todo)
    for name, index in cached_pipelines():
        yield _cached(name, index)


def _cached(name: str, file: Path) -> Check:
    from gate.backbones.families import find_family
    from gate.backbones.hub import missing_files, read_index
    from gate.backbones.index import part_names
    from gate.errors import GateError

    try:
        index = read_index(name, file.parent)
        family = find_family(name, index)
        missing = missing_files(file.parent, index, part_names(index))
    except GateError as error:
        return Check(name, "note", str(error))
    if missing:
        return Check(name, "note", f"lacks {missing[0]}", f"gate download {name}")
    return Check(name, "ok", f"{index.get('_class_name')}, family {family.family}")


def _plugins() -> Iterator[Check]:
    from gate.registry import GROUPS, plugins, refused

    for kind in GROUPS:
        every = (*plugins(kind).values(), *refused(kind))
        broken = [p for p in every if p.cls is None]
        for plugin in broken:
            todo = f"upgrade or remove it: pip uninstall {plugin.distribution}"
            yield Check(f"{kind} {plugin.name}", "broken", f"{plugin.distribution}: {plugin.error}", todo)
        yield Check(f"{kind}s", "ok", f"{len(every) - len(broken)} load")
    yield from _families()


def _families() -> Iterator[Check]:
    from gate.backbones.families import families, plugins

    for name, family in plugins().items():
        if isinstance(family, str):
            yield Check(f"family {name}", "broken", family, "upgrade or remove the package that brings it")
    yield Check("families", "ok", ", ".join(sorted(family.family for family in families())))
