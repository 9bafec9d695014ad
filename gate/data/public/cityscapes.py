"""Cityscapes (Cordts et al. 2016): 19 classes that are evaluated, of 34 in the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gate.data.public.parts import classes_of, drawn, masked, need
from gate.errors import ConfigurationError
from gate.sample import SampleSet

LAYOUT = (
    "Cityscapes' layout: leftImg8bit/train|val/CITY/NAME_leftImg8bit.png and "
    "gtFine/train|val/CITY/NAME_gtFine_labelIds.png"
)
# the file's number of each class that is evaluated, in the order of the benchmark's train ids
NUMBERS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
NAMES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
LARGEST = 33


def is_here(folder: Path) -> bool:
    """Whether a folder looks like Cityscapes."""
    return (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir()


def load(folder: Path, split: str, *, size: int, limit: int | None = None, seed: int = 0) -> SampleSet:
    """The images of a split ("train" or "val"), or `limit` of them, centre squares of size x size; classes that are not
    evaluated are -1. Raises ConfigurationError where a file is missing or malformed, and says which."""
    images = need(folder / "leftImg8bit" / split, LAYOUT, folder=True)
    masks = need(folder / "gtFine" / split, LAYOUT, folder=True)
    files = drawn(images.glob("*/*_leftImg8bit.png"), lambda file: file.name, limit, seed)
    if not files:
        raise ConfigurationError(f"{str(images)!r} holds no CITY/NAME_leftImg8bit.png; expected {LAYOUT}.")
    table = np.full(LARGEST + 2, -1, np.int16)  # the last one is for unlabelled
    table[list(NUMBERS)] = np.arange(len(NUMBERS))
    samples = []
    for file in files:
        name = file.name.removesuffix("_leftImg8bit.png")
        at = need(masks / file.parent.name / f"{name}_gtFine_labelIds.png", LAYOUT)
        numbers = classes_of(at)
        if int(numbers.max()) > LARGEST:
            raise ConfigurationError(
                f"The mask {str(at)!r} holds {int(numbers.max())}; labelIds of Cityscapes are 0 to {LARGEST}."
            )
        samples.append(masked(file, table[numbers], size, at))
    return SampleSet(tuple(samples), f"cityscapes {split}", mask_classes=NAMES)
