"""The samples that a screening's settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.data.folder import load_images
from gate.data.listing import list_folder
from gate.data.named import DEFAULT, find_data, load_data
from gate.data.sidecars import check_folder, masks_folder
from gate.sample import SampleSet

if TYPE_CHECKING:
    from gate.screening.config import ScreenConfig


def check_inputs(config: ScreenConfig) -> None:
    """Refuse names and paths that lead nowhere, before anything heavy is imported. Raises UsageError."""
    from gate.backbones.hub import check_name

    check_name(config.backbone, revision=config.revision, pipeline=config.pipeline)
    check_folder(config.images, labels=config.labels, captions=config.captions, masks=config.masks)
    if config.images is None:
        find_data(config.data or DEFAULT)


def expected(config: ScreenConfig) -> tuple[int, str]:
    """How many samples there will be at most, and of what; no image is opened."""
    if config.images is None:
        return config.samples, config.data or DEFAULT
    listing = list_folder(config.images, without=masks_folder(config.images, config.masks))
    return min(config.samples, len(listing.images)), config.images


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
