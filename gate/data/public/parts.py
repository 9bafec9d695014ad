"""What the readers of public layouts share: the folder that must be there, files drawn by name, images and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from gate.data.images import UnreadableError, fit_image, fit_mask, read_mask, read_picture
from gate.data.order import draw
from gate.errors import ConfigurationError
from gate.sample import Sample

T = TypeVar("T")
Masked = npt.NDArray[np.int16]


def need(path: Path, layout: str, *, folder: bool = False) -> Path:
    """A path that a layout must have. layout: the layout, for the message. Raises ConfigurationError."""
    if path.is_dir() if folder else path.is_file():
        return path
    what = "folder" if folder else "file"
    raise ConfigurationError(f"There is no {what} {str(path)!r}; expected {layout}.")


def drawn(items: Iterable[T], name: Callable[[T], str], limit: int | None, seed: int) -> list[T]:
    """The first `limit` in an order drawn from (seed, name), back in the order of their names."""
    every = sorted(items, key=name)
    if limit is None or limit >= len(every):
        return every
    return sorted(sorted(every, key=lambda item: draw(seed, name(item)))[:limit], key=name)


def picture(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """The centre square of an image, (size, size, 3) uint8. Raises ConfigurationError that names the file."""
    return fit_image(opened(path), size)


def opened(path: Path) -> Image.Image:
    """An image, upright, RGB. Raises ConfigurationError that names the file."""
    try:
        return read_picture(path)
    except UnreadableError as error:
        said = f"{error}" if str(error).startswith(("is ", "has ", "holds ")) else f"cannot be read: {error}"
        raise ConfigurationError(f"The image {str(path)!r} {said}.") from error


def classes_of(path: Path) -> Masked:
    """The numbers of a mask file, (h, w); 255 is -1. Raises ConfigurationError that names the file."""
    try:
        return read_mask(path)
    except UnreadableError as error:
        raise ConfigurationError(f"The mask {str(path)!r} cannot be used: {error}.") from error


def masked(path: Path, mask: npt.NDArray[Any], size: int, at: Path) -> Sample:
    """A sample of an image and its mask, (h, w), which must have one shape. at: the mask's file."""
    image = opened(path)
    if mask.shape != (image.height, image.width):
        raise ConfigurationError(
            f"{str(at)!r} is {mask.shape[1]} x {mask.shape[0]} and its image {path.name} {image.width} x "
            f"{image.height}; they must have one size."
        )
    return Sample(fit_image(image, size), mask=fit_mask(mask, size), source=path.name)


def check_names(samples: Sequence[Sample], names: Sequence[str], layout: str) -> None:
    """Refuse masks that hold classes which the layout has no name for."""
    for sample in samples:
        if sample.mask is not None and int(sample.mask.max()) >= len(names):
            raise ConfigurationError(
                f"The mask of {sample.source} holds class {int(sample.mask.max())}; {layout} has {len(names)} classes, "
                "0 first."
            )
