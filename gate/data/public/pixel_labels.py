"""Horse-21, Bedroom-28 and kin, as label-scarce segmentation with diffusion features is published (Baranchuk et al.
2022): NAME.png beside NAME.npy, the class of every pixel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.data.public.parts import check_names, drawn, masked, need
from gate.errors import ConfigurationError
from gate.sample import SampleSet

LAYOUT = (
    "the layout of Horse-21 and Bedroom-28: real/train|test/NAME.png (or .jpg) and NAME.npy, integers (h, w)"
)
ENDINGS = (".png", ".jpg", ".jpeg")
UNLABELLED = 255


def root(folder: Path) -> Path:
    """The folder that holds train and test: `real` of a data set, or itself."""
    return folder / "real" if (folder / "real").is_dir() else folder


def is_here(folder: Path) -> bool:
    """Whether images lie beside .npy files there."""
    return any(next(root(folder).glob(pattern), None) for pattern in ("*.npy", "train/*.npy", "test/*.npy"))


def load(folder: Path, split: str, *, size: int, limit: int | None = None, seed: int = 0) -> SampleSet:
    """The images of a split ("train", "test", "" for those of the folder itself), or `limit` of them.

    255 is unlabelled. The number of classes is the one that the name of the data set ends in (horse_21, Bedroom-28),
    else one more than the largest number. Raises ConfigurationError where a file is missing or malformed, says which.
    """
    at = need(root(folder) / split, LAYOUT, folder=True)
    found = drawn((f for f in at.iterdir() if f.suffix.lower() in ENDINGS), lambda f: f.name, limit, seed)
    if not found:
        raise ConfigurationError(f"{str(at)!r} holds no NAME.png; expected {LAYOUT}.")
    samples = []
    for file in found:
        labels = need(file.with_suffix(".npy"), LAYOUT)
        samples.append(masked(file, _labels(labels), size, labels))
    said = re.search(r"[-_ ](\d+)$", folder.resolve().name)
    largest = max(int(s.mask.max(initial=-1)) for s in samples if s.mask is not None)
    names = tuple(str(i) for i in range(int(said[1]) if said else largest + 1))
    check_names(samples, names, folder.resolve().name)
    return SampleSet(tuple(samples), f"{folder.resolve().name} {split}".strip(), mask_classes=names)


def _labels(file: Path) -> npt.NDArray[Any]:
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigurationError(
            f"{str(file)!r} is no array that numpy wrote without pickle ({error})."
        ) from error
    values = np.squeeze(values)
    if (
        values.ndim != 2
        or values.dtype.kind not in "biuf"
        or not values.size
        or not (values == np.rint(values)).all()
        or values.min() < 0
        or values.max() > UNLABELLED
    ):
        raise ConfigurationError(
            f"{str(file)!r} is {values.shape} {values.dtype}; expected the classes of pixels, (h, w), 0 to 255."
        )
    classes = values.astype(np.int16)
    return np.where(classes == UNLABELLED, np.int16(-1), classes)
