"""Data sets that have a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gate.data.scenes import load_scenes
from gate.data.styles import degraded, of_either_quality, sketched
from gate.errors import unknown_name
from gate.sample import SampleSet


@dataclass(frozen=True)
class NamedData:
    """A data set that `gate screen --data NAME` can use. load: called with n, size and seed by keyword."""

    name: str
    summary: str
    load: Callable[..., SampleSet]


DEFAULT = "scenes-held-out"
DATA: dict[str, NamedData] = {
    entry.name: entry
    for entry in (
        NamedData(
            "scenes-held-out",
            "Emoji scenes of objects that the tiny backbone never saw: captions, 14 classes, masks.",
            partial(load_scenes, objects="held-out"),
        ),
        NamedData(
            "scenes-trained",
            "New emoji scenes of objects that the tiny backbone was trained on: captions, 14 classes, masks.",
            partial(load_scenes, objects="trained"),
        ),
        NamedData(
            "scenes-all",
            "New emoji scenes of all objects, trained and held out: captions, 14 classes, masks.",
            partial(load_scenes, objects="all"),
        ),
        NamedData(
            "sketches-held-out",
            "The held-out scenes as pencil sketches: a domain that the tiny backbone never saw.",
            partial(load_scenes, objects="held-out", style=sketched),
        ),
        NamedData(
            "sketches-trained",
            "Scenes of trained objects as pencil sketches: to fit a LoRA, a ControlNet or a word to.",
            partial(load_scenes, objects="trained", style=sketched),
        ),
        NamedData(
            "degraded-held-out",
            "The held-out scenes, blurred and noisy; their captions do not say so.",
            partial(load_scenes, objects="held-out", style=degraded),
        ),
        NamedData(
            "quality-trained",
            "Scenes of trained objects, half of them degraded; captions end in 'high quality' or 'low quality'.",
            partial(load_scenes, objects="trained", style=of_either_quality),
        ),
    )
}


def find_data(name: str) -> NamedData:
    """The data set of a name. Raises UsageError for an unknown one."""
    if name not in DATA:
        raise unknown_name("data set", name, DATA, listing="gate list data")
    return DATA[name]


def load_data(name: str, *, n: int, size: int, seed: int = 0) -> SampleSet:
    """`n` samples of a named data set at size x size."""
    return find_data(name).load(n=n, size=size, seed=seed)
