"""A cell: rows that do the same job, their outputs compared, then their seconds, then what they could have been."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from benchmarks.compare import Difference, difference
from benchmarks.device import bandwidth, describe
from benchmarks.floors import Work, attainable, counted, weight_bytes
from benchmarks.hooks import HookLoop
from benchmarks.job import Grid, Job, Outputs, make_job
from benchmarks.models import DTYPES, converted, load
from benchmarks.planned import Planned
from benchmarks.sets import layers_of
from benchmarks.timing import Row, alternated, ratios, turn
from gate.backbone import Backbone, is_map

EXACT, FAST = "gate exact", "gate fast"
NAIVE = "hooks float32"
LIMITS = {
    "float32": 1e-3,
    "half": 0.2,
}  # relative errors beyond which a row does another job, and no time counts
Log = Callable[[str], None]
Keep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """What is asked for. half: the half precision of the fast rows. compiled: a row of hooks on a compiled denoiser.
    small_batch: a row of hooks in half precision at the peers' own batch, 0 for none. exact: whether rows in float32
    are timed; compared they are always."""

    model: str
    size: int = 0
    sets: tuple[str, ...] = ("dift",)
    modes: tuple[str, ...] = ("screen",)
    grid: Grid = field(default_factory=Grid)
    batch: int = 4
    repeats: int = 5
    half: str = "bfloat16"
    compiled: bool = False
    small_batch: int = 0
    exact: bool = True
    device: str = "cpu"


class Peers(Protocol):
    """Gives further rows, whose features cannot be compared: "peer NAME DTYPE"."""

    def rows(
        self, job: Job, layers: str, backbone: Backbone, dtype: str
    ) -> AbstractContextManager[Mapping[str, Row]]: ...


def measure(
    settings: Settings, *, peers: Peers | None = None, log: Log = lambda _: None, keep: Keep = lambda _: None
) -> dict[str, Any]:
    """All cells of a model at a size, as JSON. keep: is given what there is after each cell, for runs that are cut
    short. ValueError: a row's outputs are not those of the naive loop."""
    backbone = load(settings.model, settings.size, settings.device)
    half = converted(backbone, settings.half, channels_last=True)
    plain = converted(backbone, settings.half, channels_last=False)
    work = counted(backbone, layers_of("legacy", backbone), settings.batch)
    rates = {
        name: attainable(work.products, DTYPES[name], settings.device) for name in ("float32", settings.half)
    }
    log(", ".join(f"{name} {rate['mix'] * 1e3:.0f} GFLOP/s" for name, rate in rates.items()))
    found: dict[str, Any] = {
        "schema": 1,
        "device": describe(settings.device),
        "model": settings.model,
        "size": backbone.image_size,
        "weights": {
            name: sum(p.numel() for p in part.parameters()) for name, part in _parts(backbone).items()
        },
        "rates": rates,
        "bandwidth": bandwidth(settings.device),
        "cells": [],
    }
    for mode in settings.modes:
        for name in settings.sets:
            job = make_job(backbone, mode, layers_of(name, backbone), settings.grid, settings.batch)
            rows = _rows(job, backbone, half, plain, settings)
            dtype = settings.half if settings.half == "float16" else "float32"  # peers know no other
            with peers.rows(job, name, backbone, dtype) if peers else nullcontext({}) as theirs:
                cell = _cell(job, rows, theirs, backbone, settings, rates, found["bandwidth"], log)
            found["cells"].append({"set": name, "layers": list(job.layers), **cell})
            keep(found)
    return found


def _cell(
    job: Job,
    rows: dict[str, Row],
    theirs: Mapping[str, Row],
    backbone: Backbone,
    settings: Settings,
    rates: Mapping[str, Any],
    speed: float,
    log: Log,
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        for row in rows.values():
            if getattr(row, "compiled", False):
                stack.enter_context(row.ready())
        first, differences = _compared(rows, log)
        if not settings.exact:
            rows = {name: row for name, row in rows.items() if _dtype(name, settings) != "float32"}
        first |= {name: turn(row)[0] for name, row in theirs.items()}
        timed = {**rows, **theirs}
        seconds = alternated(timed, settings.repeats)
    work = counted(backbone, job.layers, settings.batch)
    hooks = f"hooks {settings.half}"
    pairs = [(NAIVE, EXACT), (NAIVE, FAST)]
    pairs += [(name, FAST) for name in rows if name.startswith(hooks)]
    pairs += [(f"{hooks} compiled", f"{FAST} compiled"), (NAIVE, f"{FAST} compiled")]
    pairs += [(name, ours) for name in theirs for ours in (EXACT, FAST)]
    said = ratios(seconds, pairs)
    for ratio in said:
        log(f"{job.mode}: {ratio.slow} / {ratio.fast} = {ratio.median:.2f}")
    made = {
        "mode": job.mode,
        "grid": {
            "prompts": len(job.prompts), "images": len(job.samples),
            "seeds": len(job.seeds), "timesteps": len(job.timesteps),
        },
        "batch": job.batch,
        "gflop": dataclasses.asdict(dataclasses.replace(work, products={})) | {
            "naive": work.naive(job), "planned": work.planned(job),
        },
        "rows": [
            {
                "name": name,
                "dtype": _dtype(name, settings),
                "first_seconds": first[name],
                "seconds": seconds[name],
                "difference": differences[name].as_dict() if name in differences else None,
                **_share(name, seconds[name], job, work, rates, speed, backbone, settings),
            }
            for name in timed
        ],
        "ratios": [ratio.as_dict() for ratio in said],
    }  # fmt: skip
    rows.clear()
    timed.clear()
    gc.collect()
    torch._dynamo.reset()
    return made


def _rows(
    job: Job, backbone: Backbone, half: Backbone, plain: Backbone, settings: Settings
) -> dict[str, Row]:
    """half: laid out in channels_last by its user. plain: as it is loaded; ours lays it out itself."""
    hooks = f"hooks {settings.half}"
    rows: dict[str, Row] = {
        NAIVE: HookLoop(backbone, job),
        EXACT: Planned(backbone, job),
        hooks: HookLoop(half, job),
        FAST: Planned(plain, job, "fast"),
    }
    if settings.compiled:
        own = converted(backbone, settings.half, channels_last=True)
        rows[f"{hooks} compiled"] = HookLoop(own, job, compiled=True)
        maps = any(is_map(backbone.layer_paths[layer]) for layer in job.layers)
        if hasattr(backbone.denoiser, "down_blocks") and not maps:
            own = converted(backbone, settings.half, channels_last=False)
            rows[f"{FAST} compiled"] = Planned(own, job, "fast", compiled=True)
    if settings.small_batch:
        small = dataclasses.replace(job, batch=settings.small_batch)
        rows[f"{hooks} batch {settings.small_batch}"] = HookLoop(half, small)
    return rows


def _compared(rows: Mapping[str, Row], log: Log) -> tuple[dict[str, float], dict[str, Difference]]:
    """Seconds of each first call, compilation in it, and how its outputs differ from the naive loop's."""
    first: dict[str, float] = {}
    found: dict[str, Difference] = {}
    truth: Outputs = {}
    for name, row in rows.items():
        first[name], outputs = turn(row)
        truth = truth or outputs
        found[name] = difference(outputs, truth)
        limit = LIMITS["float32" if name in (NAIVE, EXACT) or "float32" in name else "half"]
        log(f"{name}: {first[name]:.2f} s at first, error {found[name].frobenius:.2g}")
        if found[name].frobenius > limit:
            raise ValueError(
                f"{name} computes something else: its relative error is {found[name].frobenius:.2g}."
            )
    return first, found


def _share(
    name: str,
    seconds: list[float],
    job: Job,
    work: Work,
    rates: Mapping[str, Any],
    speed: float,
    backbone: Backbone,
    settings: Settings,
) -> dict[str, Any]:
    """Of the time that is unavoidable for this row's own FLOPs and weights; a peer's are taken for the naive loop's."""
    dtype = _dtype(name, settings)
    gflop = work.planned(job) if name.startswith("gate") else work.naive(job)
    rate = rates[dtype]["mix"] * 1e3
    reads = len(job.batches) * work.passes(job) / len(job.samples)
    size = weight_bytes(backbone.denoiser) * (1 if dtype == "float32" else 0.5)
    floor = max(gflop / rate, reads * size / (speed * 1e9))
    best = min(seconds)
    return {
        "gflop": gflop,
        "floor_seconds": floor,
        "share": floor / best,
        "share_of_peak": gflop / best / (rates[dtype]["peak"] * 1e3),
        "passes_per_second": work.passes(job) / best,
        "images_per_second": len(job.samples) / best,
    }


def _dtype(name: str, settings: Settings) -> str:
    return settings.half if name.startswith(FAST) or settings.half in name else "float32"


def _parts(backbone: Backbone) -> dict[str, Any]:
    own: Any = backbone
    return {"denoiser": own.denoiser, "vae": own.vae, **{name: getattr(own, name) for name in own.encoders}}


def stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
