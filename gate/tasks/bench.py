"""One bench for all arms of an evaluation: the same samples and seeds; features, heads and counts of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gate.data.pairs import PairSet
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.tasks.amalgamation import Amalgamation
from gate.tasks.config import TaskConfig
from gate.tasks.features import Source, gather, open_technique
from gate.tasks.kept import Kept
from gate.tasks.stem import Features
from gate.tasks.task import Array, Task
from gate.tasks.truth import truth_of

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone

Progress = Callable[[str, int, int], None]
TRAINING = 100  # units of progress that a training is, where an image is one


@dataclass(frozen=True)
class Arm:
    """Features of one kind: a technique's, or an amalgamation's sources."""

    name: str
    sources: tuple[Source, ...]
    amalgamated: bool = False


def images_of(half: SampleSet | PairSet) -> SampleSet:
    """The samples of either kind of set."""
    return half.samples if isinstance(half, PairSet) else half


@dataclass
class Meter:
    """Progress over everything: images through the backbone, and trainings."""

    progress: Progress
    total: int
    label: str
    done: int = 0

    def add(self, units: int) -> None:
        self.done = min(self.done + units, self.total)
        self.progress(self.label, self.done, self.total)


class Bench:
    """What all arms share."""

    def __init__(
        self,
        task: Task,
        backbone: Backbone,
        train: SampleSet | PairSet,
        test: SampleSet | PairSet,
        layers: tuple[str, ...],
        plain: tuple[str, ...],
        config: TaskConfig,
        kept: Kept,
    ) -> None:
        self.task, self.backbone, self.layers, self.plain = task, backbone, layers, plain
        self.config, self.kept = config, kept
        self.learned: dict[str, list[dict[str, Tensor]]] = {}  # by each arm's techniques
        self.first, self.second = images_of(train), images_of(test)
        whole = (train, test)
        if task.resplits:
            pool = dataclasses.replace(self.first, samples=(*self.first.samples, *self.second.samples))
            self.first, self.second = pool, pool[:0]
            whole = (pool, pool)
        self.truths = tuple(truth_of(half) for half in whole)
        unit = "pairs" if task.needs == "pairs" else "images"
        taught = task.taught(self.truths[0], 0)
        self.n_trained = len(self.truths[0].pairs) if task.needs == "pairs" else len(taught)
        self.n_judged = len(self.truths[1].pairs) if task.needs == "pairs" else len(self.truths[1])
        if task.resplits:
            self.n_judged -= self.n_trained
        self.said = f"{self.n_trained} {unit} to learn from, {self.n_judged} judged"
        self.work = len(self.first) + len(self.second) + config.seeds * TRAINING

    def counts_of(self, arm: Arm, meter: Meter) -> tuple[Array, list[str]]:
        """(seeds, n, ...) of an arm, and what is to be said about its techniques."""
        seeds = range(self.config.seeds)
        have = {seed: self.kept.counts(arm.name, seed) for seed in seeds}
        notes = [note for source in arm.sources for note in _notes(source)]
        if all(found is not None for found in have.values()):
            meter.add(self.work)
            return np.stack([have[seed] for seed in seeds]), notes  # type: ignore[misc]
        train, test = self._features(arm, meter)
        task = self.task
        if arm.amalgamated:
            weighing = Amalgamation(
                self.config.assigners, self.config.sparsity, self.config.diversity, self.config.per_channel
            )
            task = dataclasses.replace(task, stem=weighing)
        found = []
        for seed in seeds:
            before = meter.done
            done = have[seed]
            found.append(self._one(task, arm, seed, train, test, meter) if done is None else done)
            meter.add(TRAINING - (meter.done - before))
        return np.stack(found), notes

    def _one(self, task: Task, arm: Arm, seed: int, train: Features, test: Features, meter: Meter) -> Array:
        """Counts of one head, trained, judged and kept."""
        shown = 0

        def tick(done: int, steps: int) -> None:
            nonlocal shown
            now = done * (TRAINING - 1) // steps
            meter.add(now - shown)
            shown = now

        first, second = self.truths
        checkpoint = self.kept.checkpoint(arm.name, seed)
        head = task.train(train, first, seed=seed, checkpoint=checkpoint, tick=tick)
        counts = task.judge(head, test, second)
        if task.resplits:
            counts[task.taught(second, seed)] = 0  # what a head learned from is not judged
        facts = {
            "sources": [dataclasses.asdict(source) for source in arm.sources],
            "layers": list(self.layers),
            "unweighted": list(self.plain) if arm.amalgamated else [],
            "weights": self.backbone.fingerprint(),
            "backbone": self.backbone.name,
            "image_size": self.backbone.image_size,
            "seed": self.config.seed,
        }
        self.kept.keep(arm.name, seed, counts, head, facts, self.learned[arm.name])
        return counts

    def _features(self, arm: Arm, meter: Meter) -> tuple[Features, Features]:
        """Of the images to learn from, and of those that are judged."""
        techniques = [open_technique(source, self.backbone, self.first) for source in arm.sources]
        self.learned[arm.name] = [technique.state() for technique in techniques]
        share = len(arm.sources)
        made: list[Features] = []
        for samples in (self.first, self.second):
            if not len(samples):
                made.append(made[0])
                continue
            rows = _Shared(meter, share)
            parts = [
                (source, technique, self.plain if arm.amalgamated and i == 0 else ())
                for i, (source, technique) in enumerate(zip(arm.sources, techniques, strict=True))
            ]
            made.append(
                gather(
                    self.backbone,
                    parts,
                    samples,
                    layers=self.layers,
                    amalgamated=arm.amalgamated,
                    seed=self.config.seed,
                    batch_size=self.config.batch_size,
                    tick=rows.add,
                )
            )
        return made[0], made[1]


@dataclass
class _Shared:
    """Rows of several sources count as one row each time all sources have made it."""

    meter: Meter
    sources: int
    rows: int = 0

    def add(self, rows: int) -> None:
        before = self.rows // self.sources
        self.rows += rows
        self.meter.add(self.rows // self.sources - before)


def _notes(source: Source) -> list[str]:
    """What a reader of the figures must know about a technique."""
    if not source.technique:
        return []
    made = create_technique(source.technique)
    notes = [f"{source.name} is marked as a leak: {made.leak}."] if made.leak else []
    truth = sorted({"labels", "masks"} & set(made.needs))
    if truth:
        notes.append(
            f"{source.name} was given the {' and '.join(truth)} of the judged images: no fair comparison."
        )
    return notes
