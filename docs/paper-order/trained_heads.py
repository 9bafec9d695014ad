"""The paper's structure by trained heads: baseline < each technique < their composition < an amalgamation of
compositions, and amalgamating techniques against amalgamating timesteps. Every step is a paired gain.

python docs/paper-order/trained_heads.py --work FOLDER --output docs/paper-order/trained-heads.json

The folder keeps features (6 GB) and the counts of every head, so the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gate
from gate.backbone import Backbone
from gate.backbones import resolve_layers
from gate.data import load_data
from gate.data.pairs import PairSet, load_pairs
from gate.sample import SampleSet
from gate.tasks import create_task, truth_of
from gate.tasks.amalgamation import Amalgamation, key_of
from gate.tasks.features import gather, open_technique, read_source
from gate.tasks.result import rows_of
from gate.tasks.stem import Features
from gate.tasks.task import Array, Task

DATA, SEEDS, RESAMPLES = "scenes-held-out", (0, 1, 2), 2000
SINGLES = ("prompt", "controlnet", "ddim-inversion")
COMPOSED = {
    "prompt+controlnet": ("prompt", "controlnet"),
    "prompt+ddim-inversion": ("prompt", "ddim-inversion"),
}
OF_PAPER = "amalgam: prompt, controlnet"
OF_ALL = "amalgam: prompt, controlnet, ddim-inversion"
OVER_TIME, COMPOSED_OVER_TIME = "amalgam: vanilla over t", "amalgam: prompt+controlnet over t"
LOWER = "amalgam: vanilla over t, lower"
TIMES = {300: (200, 300, 400, 500), 50: (20, 50, 100, 200)}
LOWER_TIMES = (50, 100, 200, 300)
SIZES = {
    "images": (600, 400),
    "pairs": (200, 150),
}  # to learn from and to judge: about 40 minutes of one busy core a task


def arms_of(t: int) -> dict[str, tuple[str, ...]]:
    """Sources by arm, TECHNIQUE@TIMESTEP each; several are amalgamated, and every amalgam has four."""
    alone = ("vanilla", *SINGLES, *COMPOSED)
    found = {name: (f"{name}@{t}",) for name in alone}
    found[OF_PAPER] = tuple(
        f"{name}@{t}" for name in ("vanilla", "prompt", "controlnet", "prompt+controlnet")
    )
    found[OF_ALL] = tuple(f"{name}@{t}" for name in ("prompt", "ddim-inversion", *COMPOSED))
    found[OVER_TIME] = tuple(f"vanilla@{other}" for other in TIMES[t])
    found[COMPOSED_OVER_TIME] = tuple(f"prompt+controlnet@{other}" for other in TIMES[t])
    if t > max(LOWER_TIMES[:-1]):
        found[LOWER] = tuple(f"vanilla@{other}" for other in LOWER_TIMES)
    return found


def steps_of(t: int) -> list[tuple[str, str, str]]:
    """(claim, the lesser, the better) of every step that the paper's structure has."""
    found = [("baseline < technique", "vanilla", name) for name in SINGLES]
    found += [("technique < composition", part, name) for name, parts in COMPOSED.items() for part in parts]
    found += [("composition < amalgamation", "prompt+controlnet", OF_PAPER)]
    found += [("composition < amalgamation", name, OF_ALL) for name in COMPOSED]
    found += [("baseline < timesteps", "vanilla", OVER_TIME)]
    found += [("timesteps < techniques", OVER_TIME, OF_PAPER), ("timesteps < techniques", OVER_TIME, OF_ALL)]
    found += [("timesteps < techniques", COMPOSED_OVER_TIME, OF_PAPER)]
    return found + ([("timesteps < techniques", LOWER, OF_PAPER)] if LOWER in arms_of(t) else [])


class Sources:
    """Features of each source on both halves of a set, extracted once."""

    def __init__(self, backbone: Backbone, halves: tuple[SampleSet, SampleSet], folder: Path) -> None:
        self.backbone, self.halves, self.folder = backbone, halves, folder
        self.layers = resolve_layers(("paper",), backbone.layer_paths)
        backbone.calibrate(self.layers)
        self.held: dict[str, tuple[Features, Features]] = {}

    def of(self, text: str) -> tuple[Features, Features]:
        file = self.folder / f"{self.halves[0].name}-{len(self.halves[0])}-{text}.pt"
        if text not in self.held and file.is_file():
            self.held[text] = torch.load(file, weights_only=True)
        if text not in self.held:
            begin = time.perf_counter()
            self.held[text] = self._extracted(text)
            torch.save(self.held[text], file)
            print(f"  {text}: {time.perf_counter() - begin:.0f} s", flush=True)
        return self.held[text]

    def _extracted(self, text: str) -> tuple[Features, Features]:
        source = read_source(text, 0)
        technique = open_technique(source, self.backbone, self.halves[0])
        first, second = (
            gather(
                self.backbone,
                [(source, technique, ())],
                samples,
                layers=self.layers,
                amalgamated=True,
                seed=0,
                batch_size=8,
                tick=lambda _: None,
            )
            for samples in self.halves
        )
        return first, second

    def joined(self, sources: tuple[str, ...]) -> tuple[Features, Features]:
        """Of one source under its layers' names; of several under theirs too."""
        halves = []
        for half in range(2):
            one = {layer: self.of(sources[0])[half][key_of(sources[0], layer)] for layer in self.layers}
            every = {key: x for text in sources for key, x in self.of(text)[half].items()}
            halves.append(one if len(sources) == 1 else every)
        return halves[0], halves[1]


def halves_of(task: Task, n: int, m: int) -> tuple[SampleSet | PairSet, SampleSet | PairSet]:
    """n to learn from and m to judge: images, or pairs."""
    if task.needs != "pairs":
        every = load_data(DATA, n=n + m, size=64)
        return every[:n], every[n:]
    both = load_pairs(n=n + m, size=64, seed=0, objects="held-out")
    halves = []
    for start, stop in ((0, n), (n, n + m)):
        pairs = tuple(
            dataclasses.replace(pair, source=pair.source - 2 * start, target=pair.target - 2 * start)
            for pair in both.pairs[start:stop]
        )
        halves.append(PairSet(both.samples[2 * start : 2 * stop], pairs))
    return halves[0], halves[1]


def counts_of(task: Task, sources: Sources, arm: tuple[str, ...], truths: Any, file: Path) -> Array:
    """(seeds, n, ...) of the heads of an arm."""
    if not file.is_file():
        train, test = sources.joined(arm)
        chosen = dataclasses.replace(task, stem=Amalgamation()) if len(arm) > 1 else task
        heads = [chosen.train(train, truths[0], seed=seed) for seed in SEEDS]
        np.save(file, np.stack([chosen.judge(head, test, truths[1]) for head in heads]))
    return np.asarray(np.load(file))


def measured(task: Task, counts: Mapping[str, Array], t: int) -> dict[str, Any]:
    """Every arm's figure, and every step's gain, paired."""
    rows = [row.as_json() for row in rows_of(task, counts, vanilla="vanilla", resamples=RESAMPLES)]
    steps = []
    for claim, lesser, better in steps_of(t):
        two = {lesser: counts[lesser], better: counts[better]}
        found = rows_of(task, two, vanilla=lesser, resamples=RESAMPLES)
        gain = next(row.gain for row in found if row.primary and row.arm == better)
        assert gain is not None
        steps.append({"claim": claim, "lesser": lesser, "better": better, "gain": dataclasses.asdict(gain)})
    return {"task": task.name, "timestep": t, "arms": arms_of(t), "rows": rows, "steps": steps}


def main() -> None:
    """Images first, pairs last; what is finished is written at once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["segmentation-linear"])
    parser.add_argument("--sizes", type=int, nargs=2, help="to learn from and to judge, of every task")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    backbone = gate.load_backbone("tiny")
    results: list[dict[str, Any]] = []
    sources: dict[str, Sources] = {}
    for name in asked.tasks:
        task = create_task(name)
        kind = "pairs" if task.needs == "pairs" else "images"
        sizes = tuple(asked.sizes) if asked.sizes else SIZES[kind]
        halves = halves_of(task, *sizes)
        images = tuple(half.samples if isinstance(half, PairSet) else half for half in halves)
        if kind not in sources:
            sources = {kind: Sources(backbone, images, asked.work)}  # type: ignore[arg-type]
        truths = [truth_of(half) for half in halves]
        for t in TIMES:
            begin, counts = time.perf_counter(), {}
            for arm, named in arms_of(t).items():
                file = asked.work / f"{name}-{t}-{arm.replace(' ', '_')}.npy"
                counts[arm] = counts_of(task, sources[kind], named, truths, file)
                print(f"{name} t={t} {arm}: {time.perf_counter() - begin:.0f} s", flush=True)
            results.append({"trained_on": sizes[0], "judged_on": sizes[1], **measured(task, counts, t)})
            said = {"data": DATA, "backbone": "tiny", "weights": backbone.fingerprint(), "noise_seed": 0}
            said |= {"head_seeds": list(SEEDS), "resamples": RESAMPLES, "results": results}
            asked.output.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
