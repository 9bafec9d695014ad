"""Computing cells: the passes of a technique over a domain's images, what is read off them, and who does it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing.connection
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gate.forks import Fork
from gate.passes import Plan, stream
from gate.probe import MAP_SIDE, Probe
from gate.registry import create_technique, select_plugins
from gate.screening.bench import Bench, prepare
from gate.screening.config import make_config
from gate.screening.measured import Measured, Tally
from gate.study.cell import Cell, has_cell, save_cell
from gate.study.cheap import Draw, Ground, draw, quantities
from gate.study.plan import VANILLA, CellKey, Group, StudySettings, draws_of
from gate.study.pool import Pool, open_pool
from gate.study.truth import train_heads
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone

METRICS = ("standard", "high-frequency-ratio")
POLL_SECONDS = 2.0
MEMO_BYTES = 512 << 20  # vanilla's features of all images, and what inversions and ensembles share


@dataclass(frozen=True, eq=False)
class Table:
    """What the cells of a group share."""

    settings: StudySettings
    group: Group
    pool: Pool
    bench: Bench
    ground: Ground
    draws: list[Draw]
    probes: list[Probe]


def set_table(settings: StudySettings, group: Group, backbone: Backbone, folder: Path) -> Table:
    """Images, latents, references, folds."""
    pool = open_pool(settings, group.domain, backbone, folder)
    config = make_config(
        {
            "backbone": settings.backbone,
            "timesteps": (group.timestep,),
            "seeds": 1,
            "seed": settings.seed,
            "layers": settings.layers,
            "samples": settings.screening,
            "image_samples": settings.image_samples,
            "batch_size": settings.batch_size,
        }
    )
    probes: list[Probe] = [p for p in select_plugins("probe", ("standard",)) if p.reads == "features"]
    metrics = [m for name in METRICS for m in select_plugins("metric", (name,))]
    bench = prepare(backbone, pool.screening, config, metrics, probes)
    bench.memo.limit = MEMO_BYTES
    ground = Ground.of(pool.screening, (MAP_SIDE, MAP_SIDE), settings.seed)
    draws = [draw(ground, rows, seed=settings.seed) for _, rows in draws_of(settings)]
    return Table(settings, group, pool, bench, ground, draws, probes)


def compute_cell(table: Table, name: str) -> Cell:
    """Everything about one technique of a group. Raises what the technique raises."""
    technique = Technique() if name == VANILLA else create_technique(name)
    bench = table.bench
    technique.check(bench.backbone, technique.visible(table.pool.screening))
    technique.fit(bench.backbone, technique.visible(table.pool.screening))
    tally = _screened(bench, technique)
    maps = tally.maps["", (0, 0)].array()
    tally.bench = _without_probes(bench)
    measured = tally.measured()
    key = CellKey(table.group.domain.name, table.group.timestep, name)
    cell = Cell(key, technique.leak, measured.calls, single=_singles(measured))
    cell.drawn, cell.columns, cell.seconds = quantities(maps, table.ground, table.draws, table.probes)
    cell.seconds["pass"] = measured.ms / 1000
    del maps, tally
    began = time.perf_counter()
    features = head_features(table, technique)
    cell.seconds["extraction of heads"] = time.perf_counter() - began
    split = len(table.pool.train)
    train, test = ({k: f[rows] for k, f in features.items()} for rows in (slice(split), slice(split, None)))
    cell.truth, seconds = train_heads(table.settings, table.pool, train, test)
    cell.seconds |= seconds
    return cell


def _screened(bench: Bench, technique: Technique) -> Tally:
    plan = bench.plan(technique)
    found = Tally(bench, plan)
    with contextlib.closing(stream(plan, memo=bench.memo, reference=bench.reference)) as passes:
        for passed in passes:
            found.add(passed)
    return found


def _without_probes(bench: Bench) -> Bench:
    return dataclasses.replace(bench, probes=())


def _singles(measured: Measured) -> dict[str, NDArray[Any]]:
    """Of the one timestep and noise."""
    found: dict[str, NDArray[Any]] = {f"shift {k}": v[0, 0] for k, v in measured.shift.items()}
    found |= {f"pass {k}": v[0, 0] for k, v in measured.prediction.items()}
    found |= {f"image {k}": v for k, v in measured.image.items()}
    if measured.carried is not None:
        found["carried"] = measured.carried[0]
    return found


@torch.no_grad()
def head_features(table: Table, technique: Technique) -> dict[str, Tensor]:
    """{layer: (n, c, h, w)} of the images of heads; forwards stop after the last layer."""
    bench = table.bench
    parts: dict[str, list[Tensor]] = {layer: [] for layer in bench.layers}
    plan = Plan(
        bench.backbone,
        technique,
        table.pool.heads,
        (table.group.timestep,),
        (table.settings.seed,),
        bench.layers,
        bench.batch_size,
        table.pool.x0,
        outputs=False,
    )
    with contextlib.closing(stream(plan, memo=bench.memo)) as passes:
        for passed in passes:
            for layer, feature in passed.response.features.items():
                parts[layer].append(feature.float())
    return {layer: torch.cat(features) for layer, features in parts.items()}


def compute_group(
    settings: StudySettings, group: Group, backbone: Backbone, folder: Path, log: Callable[[str], None]
) -> int:
    """The cells of a group that are missing, each written as it is done; returns how many were."""
    missing = [key for key in group.keys if not has_cell(folder, key)]
    if not missing:
        return 0
    table = set_table(settings, group, backbone, folder)
    done = 0
    for key in missing:
        began = time.perf_counter()
        cell = compute_cell(table, key.technique)
        cell.seconds["cell"] = time.perf_counter() - began
        save_cell(folder, cell)
        done += 1
        log(f"{key.domain} t={key.timestep} {key.technique}: {cell.seconds['cell']:.1f} s")
    return done


def compute(
    settings: StudySettings,
    groups: list[Group],
    backbone: Backbone,
    folder: Path,
    *,
    workers: int,
    tick: Callable[[], None],
    log: Callable[[str], None],
) -> list[str]:
    """All groups, `workers` at a time in forks of one thread. tick() is called often. Returns what failed, in words."""
    waiting = [g for g in groups if any(not has_cell(folder, key) for key in g.keys)]
    running: list[tuple[Group, Fork[int]]] = []
    failed: list[str] = []

    def work(group: Group, _: str) -> int:
        return compute_group(settings, group, backbone, folder, log)

    try:
        while waiting or running:
            while waiting and len(running) < workers:
                group = _next(waiting, [g for g, _ in running])
                if group is None:
                    break
                name = f"{group.domain.name} t={group.timestep}"
                running.append((group, Fork(name, functools.partial(work, group), 1)))
            ready = multiprocessing.connection.wait([w for _, f in running for w in f.waits], POLL_SECONDS)
            tick()
            for pair in [p for p in running if p[1].is_over(ready, float("inf"))]:
                running.remove(pair)
                found, _ = pair[1].result()
                pair[1].end()
                if found is None:
                    failed.append(f"{pair[1].name}: {pair[1].fate()}")
    finally:
        for _, fork in running:
            fork.end()
    return failed


def _next(waiting: list[Group], running: list[Group]) -> Group | None:
    """The first that waits for nobody: searched captions are written by one process alone."""
    for group in waiting:
        if not (group.domain.searched and any(g.domain == group.domain for g in running)):
            waiting.remove(group)
            return group
    return None
