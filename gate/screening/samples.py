"""The samples that a screening's settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.data.folder import load_images
from gate.data.named import load_data
from gate.errors import UsageError
from gate.sample import SampleSet

if TYPE_CHECKING:
    from gate.screening.config import ScreenConfig


def load_for(config: ScreenConfig, *, size: int) -> SampleSet:
    """The user's folder where there is one, else a named data set, at size x size."""
    companions = {"labels": config.labels, "captions": config.captions, "masks": config.masks}
    if config.images is None:
        for name, value in companions.items():
            if value is not None:
                raise UsageError(f"--{name} belongs to a folder of images; give --images DIR too.")
        return load_data(config.data, n=config.samples, size=size, seed=config.seed)
    return load_images(
        config.images,
        size=size,
        limit=config.samples,
        seed=config.seed,
        labels=config.labels,
        captions=config.captions,
        masks=config.masks,
    )
