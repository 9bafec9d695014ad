"""What the draws are taken from: real numbers and probe maps of many scenes, made once and kept in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gate.passes import stream
from gate.registry import create_technique
from gate.screening.bench import Bench, open_bench
from gate.screening.config import SCORE_METRICS, ScreenConfig
from gate.screening.measured import Tally
from gate.technique import Technique

TIMESTEP = 300
EQUALS = 6  # techniques that differ in their noise alone: equal by construction
# technique -> noise seeds
WANTED = {
    "vanilla": (0, *range(1, EQUALS + 1)),
    "noise-ensemble": (0,),
    "prompt": (0,),
    "freeu": (0, *range(1, EQUALS + 1)),
    "guidance-fdg": (0,),
}


@dataclass(frozen=True, eq=False)
class Pool:
    """Numbers of all scenes under one technique and one noise seed.

    shifts: {metric: (n, layers) or (n, 1)}. maps: (n, c, h, w) float16, mapped from the disk.
    """

    shifts: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float16]


def bench_of(scenes: int, folder: Path) -> Bench:
    """The bench of all scenes; its samples are the same in every call."""
    config = ScreenConfig(samples=scenes, timesteps=(TIMESTEP,), seeds=1, image_samples=0, device="cpu")
    return open_bench(config, scratch=folder)


def capture(bench: Bench, folder: Path, log: Callable[[str], None]) -> None:
    """Measure what is not in the folder yet, technique by technique, seed by seed."""
    for name, seeds in WANTED.items():
        technique = Technique() if name == "vanilla" else create_technique(name)
        for seed in seeds:
            target = _file(folder, name, seed)
            if target.with_suffix(".npz").is_file():
                continue
            log(f"capturing {name}, noise seed {seed}")
            plan = dataclasses.replace(bench.plan(technique), seeds=(seed,))
            tally = Tally(bench, plan)
            with closing(stream(plan, reference=bench.reference)) as passes:
                for passed in passes:
                    tally.add(passed)
            np.save(target.with_suffix(".npy"), tally.maps[0, 0].array().astype(np.float16))
            tables = {**tally.out.shift, **tally.out.prediction}
            numbers = {m: tables[m][0, 0].reshape(-1, len(bench.samples)).T for m in SCORE_METRICS}
            np.savez(target.with_suffix(".npz"), **numbers)  # last: its presence says that both are there


def read(folder: Path, name: str, seed: int) -> Pool:
    """What `capture` kept of one technique under one noise seed."""
    file = _file(folder, name, seed)
    with np.load(file.with_suffix(".npz")) as numbers:
        shifts = {key: numbers[key].astype(np.float64) for key in numbers.files}
    return Pool(shifts, np.load(file.with_suffix(".npy"), mmap_mode="r"))


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-{seed}"
