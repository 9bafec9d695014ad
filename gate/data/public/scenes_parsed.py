"""ADE20K's scene parsing challenge (Zhou et al. 2017): 150 classes, 0 in a file is unlabelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gate.data.public.parts import classes_of, drawn, masked, need
from gate.errors import ConfigurationError
from gate.sample import SampleSet

LAYOUT = (
    "ADE20K's layout (ADEChallengeData2016): images/training|validation/NAME.jpg and "
    "annotations/training|validation/NAME.png"
)
CLASSES = 150
OBJECTS = "objectInfo150.txt"


def is_here(folder: Path) -> bool:
    """Whether a folder looks like ADE20K."""
    return (folder / "images").is_dir() and (folder / "annotations").is_dir()


def load(folder: Path, split: str, *, size: int, limit: int | None = None, seed: int = 0) -> SampleSet:
    """The images of a split ("training" or "validation"), or `limit` of them, centre squares of size x size.

    Classes 1 to 150 of the files become 0 to 149, and 0 becomes -1. Raises ConfigurationError where a file is missing
    or malformed, and says which.
    """
    images = need(folder / "images" / split, LAYOUT, folder=True)
    masks = need(folder / "annotations" / split, LAYOUT, folder=True)
    files = drawn(images.glob("*.jpg"), lambda file: file.name, limit, seed)
    if not files:
        raise ConfigurationError(f"{str(images)!r} holds no NAME.jpg; expected {LAYOUT}.")
    samples = []
    for file in files:
        at = need(masks / f"{file.stem}.png", LAYOUT)
        numbers = classes_of(at)
        if int(numbers.max()) > CLASSES:
            raise ConfigurationError(
                f"The mask {str(at)!r} holds {int(numbers.max())}; ADE20K's classes are 1 to {CLASSES}, 0 for none."
            )
        samples.append(masked(file, np.maximum(numbers, 0) - 1, size, at))
    return SampleSet(tuple(samples), f"ade20k {split}", mask_classes=_names(folder / OBJECTS))


def _names(file: Path) -> tuple[str, ...]:
    """The last column of objectInfo150.txt; numbers where the file is not there."""
    if not file.is_file():
        return tuple(str(i + 1) for i in range(CLASSES))
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    names = tuple(line[-1].strip() for line in lines[1:] if line[-1].strip())
    if len(names) != CLASSES:
        raise ConfigurationError(
            f"{str(file)!r} names {len(names)} classes below its heading; expected {CLASSES}."
        )
    return names
