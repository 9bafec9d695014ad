"""Data sets that have a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gate.data.scenes import draw_scenes, load_scenes, unnamed
from gate.data.styles import degraded, of_either_quality, sketched
from gate.errors import unknown_name
from gate.sample import SampleSet
from gate.tiny.scenes import Scene


@dataclass(frozen=True)
class NamedData:
    """A data set that `gate screen --data NAME` can use.

    load: called with n, size and seed by keyword. draw: the scenes behind it, called alike.
    """

    name: str
    summary: str
    load: Callable[..., SampleSet]
    draw: Callable[..., list[Scene]]


def _scenes(name: str, summary: str, **settings: Any) -> NamedData:
    """Scenes by the settings of `load_scenes`."""
    drawn = {k: v for k, v in settings.items() if k not in ("style", "cluttered", "caption")}
    return NamedData(name, summary, partial(load_scenes, **settings), partial(draw_scenes, **drawn))


DEFAULT = "scenes-held-out"
DATA: dict[str, NamedData] = {
    entry.name: entry
    for entry in (
        _scenes(
            "scenes-held-out",
            "Emoji scenes of objects that the tiny backbone never saw: captions, 14 classes, masks.",
            objects="held-out",
        ),
        _scenes(
            "scenes-trained",
            "New emoji scenes of objects that the tiny backbone was trained on: captions, 14 classes, masks.",
            objects="trained",
        ),
        _scenes(
            "scenes-all",
            "New emoji scenes of all objects, trained and held out: captions, 14 classes, masks.",
            objects="all",
        ),
        _scenes(
            "sketches-held-out",
            "The held-out scenes as pencil sketches: a domain that the tiny backbone never saw.",
            objects="held-out",
            style=sketched,
        ),
        _scenes(
            "sketches-trained",
            "Scenes of trained objects as pencil sketches: to fit a LoRA, a ControlNet or a word to.",
            objects="trained",
            style=sketched,
        ),
        _scenes(
            "degraded-held-out",
            "The held-out scenes, blurred and noisy; their captions do not say so.",
            objects="held-out",
            style=degraded,
        ),
        _scenes(
            "quality-trained",
            "Scenes of trained objects, half of them degraded; captions end in 'high quality' or 'low quality'.",
            objects="trained",
            style=of_either_quality,
        ),
        _scenes(
            "cluttered-held-out",
            "Two held-out objects a scene, in front of shapes of no class: captions, 14 classes, masks.",
            objects="held-out",
            count=2,
            cluttered=True,
        ),
        _scenes(
            "few-classes",
            "Scenes of mammals, vehicles, fruit and buildings alone, trained and held out: 4 classes.",
            objects="all",
            groups=("mammal", "vehicle", "fruit", "building"),
        ),
        _scenes(
            "objects-held-out",
            "The held-out scenes with a class for each of the 28 objects: captions, masks.",
            objects="held-out",
            by_object=True,
        ),
        _scenes(
            "unnamed-held-out",
            "The held-out scenes under captions that tell number and background, and not what there is.",
            objects="held-out",
            caption=unnamed,
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
