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
from gate.sample import SampleSet
from gate.screening.bench import open_bench
from gate.screening.config import SCORE_METRICS, ScreenConfig
from gate.screening.measured import Tally
from gate.screening.samples import load_for
from gate.technique import Technique

VANILLA = ("vanilla", 0)  # technique, noise seed
TECHNIQUES = (("noise-ensemble", 0), ("prompt", 0), ("freeu", 0))
EQUALS = tuple(
    ("vanilla", seed) for seed in range(1, 7)
)  # other noise and nothing else: equal by construction
Member = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Numbers:
    """All scenes under one technique and one noise seed.

    shifts: {metric: (n, layers) or (n, 1)}. maps: (n, c, h, w) float16, mapped from the disk.
    """

    shifts: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float16]


def config_of(scenes: int) -> ScreenConfig:
    """One timestep and one seed: what a draw is of is scenes."""
    return ScreenConfig(samples=scenes, timesteps=(300,), seeds=1, image_samples=0, device="cpu")


def open_pool(
    scenes: int, folder: Path, log: Callable[[str], None]
) -> tuple[SampleSet, dict[Member, Numbers]]:
    """The scenes and everybody's numbers; what is not in the folder yet is measured, a technique at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    everyone = (VANILLA, *EQUALS, *TECHNIQUES)
    missing = [m for m in everyone if not _file(folder, m).with_suffix(".npz").is_file()]
    if missing:
        _capture(scenes, missing, folder, log)
    return load_for(config_of(scenes), size=64), {m: _read(_file(folder, m)) for m in everyone}


def _capture(scenes: int, missing: list[Member], folder: Path, log: Callable[[str], None]) -> None:
    bench = open_bench(config_of(scenes), scratch=folder)
    for name, seed in missing:
        log(f"measuring {name} under noise seed {seed} on {scenes} scenes")
        technique = Technique() if name == "vanilla" else create_technique(name)
        plan = dataclasses.replace(bench.plan(technique), seeds=(seed,))
        tally = Tally(bench, plan)
        with closing(stream(plan, reference=bench.reference)) as passes:
            for passed in passes:
                tally.add(passed)
        file, tables = _file(folder, (name, seed)), {**tally.out.shift, **tally.out.prediction}
        np.save(file.with_suffix(".npy"), tally.maps["", (0, 0)].array().astype(np.float16))
        numbers = {m: tables[m][0, 0].reshape(-1, scenes).T for m in SCORE_METRICS}
        np.savez(file.with_suffix(".npz"), **numbers)  # last: its presence says that both are there


def _read(file: Path) -> Numbers:
    with np.load(file.with_suffix(".npz")) as numbers:
        shifts = {key: numbers[key].astype(np.float64) for key in numbers.files}
    return Numbers(shifts, np.load(file.with_suffix(".npy"), mmap_mode="r"))


def _file(folder: Path, member: Member) -> Path:
    return folder / f"{member[0]}-{member[1]}"
