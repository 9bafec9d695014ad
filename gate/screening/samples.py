"""The samples that a screening's settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gate.data.folder import load_images
from gate.data.named import DEFAULT, find_data, load_data
from gate.errors import UsageError
from gate.sample import SampleSet

if TYPE_CHECKING:
    from gate.screening.config import ScreenConfig


def check_inputs(config: ScreenConfig) -> None:
    """Refuse names and paths that lead nowhere, before anything heavy is imported. Raises UsageError."""
    from gate.backbones.hub import check_name

    check_name(config.backbone, revision=config.revision, pipeline=config.pipeline)
    beside = {"labels": config.labels, "captions": config.captions, "masks": config.masks}
    for name, value in beside.items():
        if value is None:
            continue
        if config.images is None:
            raise UsageError(f"--{name} belongs to a folder of images; give --images DIR too.")
        if not Path(value).exists():
            raise UsageError(f"There is no {value!r} for --{name}; check the path.")
    if config.images is None:
        find_data(config.data or DEFAULT)
    elif not Path(config.images).is_dir():
        what = "is a file" if Path(config.images).exists() else "does not exist"
        raise UsageError(f"{config.images!r} {what}; give the folder that holds the images.")


def load_for(config: ScreenConfig, *, size: int) -> SampleSet:
    """The user's folder where there is one, else a named data set, at size x size."""
    if config.images is None:
        return load_data(config.data or DEFAULT, n=config.samples, size=size, seed=config.seed)
    return load_images(
        config.images,
        size=size,
        limit=config.samples,
        seed=config.seed,
        labels=config.labels,
        captions=config.captions,
        masks=config.masks,
    )
