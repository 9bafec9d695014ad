"""The ImageFolder layout: a split's folder, a folder per class in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gate.data.folder import load_images
from gate.data.public.parts import need
from gate.errors import ConfigurationError, UsageError
from gate.sample import SampleSet

LAYOUT = "the ImageFolder layout: train/CLASS/NAME.jpg and val/CLASS/NAME.jpg (or test)"


def is_here(folder: Path) -> bool:
    """Whether there is a folder of training images."""
    return (folder / "train").is_dir()


def load(folder: Path, split: str, *, size: int, limit: int | None = None, seed: int = 0) -> SampleSet:
    """The images of a split ("train"; "test", which may be called val), or `limit` of them, as even over classes as can
    be. Both splits have the classes of the training folder.

    Raises ConfigurationError where a folder is missing, or the test images have a class that is not trained.
    """
    classes = _classes(need(folder / "train", LAYOUT, folder=True))
    at = folder / split
    if split == "test" and not at.is_dir():
        at = folder / "val"
    try:
        made = load_images(need(at, LAYOUT, folder=True), size=size, limit=limit, seed=seed, minimum=1)
    except UsageError as error:  # an empty folder: here it is the copy that is at fault, not what was typed
        raise ConfigurationError(f"{error} Expected {LAYOUT}.") from error
    unknown = [name for name in made.classes if name not in classes]
    if unknown or not made.classes:
        what = f"the class {unknown[0]!r}, which train has not" if unknown else "no folders of classes"
        raise ConfigurationError(f"{str(at)!r} has {what}; expected {LAYOUT}.")
    place = [classes.index(name) for name in made.classes]
    samples = tuple(dataclasses.replace(s, label=None if s.label is None else place[s.label]) for s in made)
    return dataclasses.replace(
        made, samples=samples, classes=classes, name=f"{folder.resolve().name} {split}"
    )


def _classes(train: Path) -> tuple[str, ...]:
    found = tuple(sorted(f.name for f in train.iterdir() if f.is_dir() and not f.name.startswith(".")))
    if len(found) < 2:
        raise ConfigurationError(f"{str(train)!r} has {len(found)} folders of classes; expected {LAYOUT}.")
    return found
