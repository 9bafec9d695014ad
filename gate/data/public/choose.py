"""Which public layout a folder has, by the truth that is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gate.data.pairs import PairSet
from gate.data.public import cifar, cityscapes, image_folder, pixel_labels, scenes_parsed, spair
from gate.errors import ConfigurationError, UsageError
from gate.sample import SampleSet

Needs = Literal["masks", "labels", "pairs"]
Samples = SampleSet | PairSet


@dataclass(frozen=True)
class Halves:
    """What is trained on and what is judged."""

    train: Samples
    test: Samples


@dataclass(frozen=True)
class _Layout:
    needs: Needs
    said: str
    is_here: Callable[[Path], bool]
    load: Callable[..., Samples]
    splits: tuple[str, str]


_LAYOUTS = (
    _Layout("pairs", spair.LAYOUT, spair.is_here, spair.load, ("trn", "test")),
    _Layout(
        "masks", scenes_parsed.LAYOUT, scenes_parsed.is_here, scenes_parsed.load, ("training", "validation")
    ),
    _Layout("masks", cityscapes.LAYOUT, cityscapes.is_here, cityscapes.load, ("train", "val")),
    _Layout("masks", pixel_labels.LAYOUT, pixel_labels.is_here, pixel_labels.load, ("train", "test")),
    _Layout("labels", cifar.LAYOUT, cifar.is_here, cifar.load, ("train", "test")),
    _Layout("labels", image_folder.LAYOUT, image_folder.is_here, image_folder.load, ("train", "test")),
)


def load_public(
    folder: Path, needs: Needs, *, size: int, train: int | None = None, test: int | None = None, seed: int = 0
) -> Halves:
    """Both splits of a public data set. train, test: so many of each, drawn by the seed; None for all.

    Raises UsageError where there is no such folder, ConfigurationError where its layout is none that is known or lacks
    something, which is named.
    """
    if not folder.is_dir():
        raise UsageError(
            f"There is no folder {str(folder)!r}; gate list data has the data sets that have a name."
        )
    fitting = [layout for layout in _LAYOUTS if layout.needs == needs]
    for layout in fitting:
        if layout.is_here(folder):
            first, second = layout.splits
            return Halves(
                layout.load(folder, first, size=size, limit=train, seed=seed),
                layout.load(folder, second, size=size, limit=test, seed=seed),
            )
    raise ConfigurationError(
        f"{str(folder)!r} has no layout with {needs} that is known; expected one of: "
        + "; ".join(layout.said for layout in fitting)
        + "."
    )
