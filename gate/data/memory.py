"""Images that are in memory already, as samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gate.data.images import centre_square, check_size, fit_image, fit_mask
from gate.errors import UsageError
from gate.sample import Sample, SampleSet

ImageLike = Sample | Image.Image | npt.NDArray[Any]


def as_samples(images: SampleSet | ImageLike | Iterable[ImageLike], size: int) -> SampleSet:
    """Samples, PIL images or (h, w, 3) uint8 arrays, one or many, as size x size samples in the same order.

    A SampleSet of the right size is returned as it is, and so is each Sample. Others are fitted as
    `load_images` fits a file, their masks and keypoints with them. The classes of bare Samples are named by
    their numbers.
    """
    check_size(size)
    if isinstance(images, SampleSet):
        fitted = tuple(fit_sample(sample, size) for sample in images)
        unchanged = all(a is b for a, b in zip(fitted, images, strict=True))
        return images if unchanged else dataclasses.replace(images, samples=fitted)
    if isinstance(images, (Sample, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise _not_an_image(images)
    samples = tuple(_convert(image, size) for image in images)
    if not samples:
        raise UsageError("There are no images; give at least one.")
    labels = [s.label for s in samples if s.label is not None]
    values = [int(s.mask.max()) for s in samples if s.mask is not None]
    return SampleSet(
        samples,
        classes=tuple(str(k) for k in range(max(labels, default=-1) + 1)),
        mask_classes=tuple(str(k) for k in range(max(values, default=-1) + 1)),
    )


def fit_sample(sample: Sample, size: int) -> Sample:
    """A sample at size x size; itself when it has that size. A fitted image has an id of its own."""
    height, width = sample.image.shape[:2]
    if (height, width) == (size, size):
        return sample
    left, top, right, _ = centre_square(width, height)
    keypoints = sample.keypoints
    if keypoints is not None:  # pixel (row i, column j) has its centre at (j, i), hence the halves
        keypoints = (keypoints + 0.5 - np.array([left, top])) * (size / (right - left)) - 0.5
    return dataclasses.replace(
        sample,
        image=fit_image(Image.fromarray(sample.image), size),
        mask=None if sample.mask is None else fit_mask(sample.mask, size),
        keypoints=keypoints,
        id="",
    )


def _convert(image: object, size: int) -> Sample:
    if isinstance(image, Sample):
        return fit_sample(image, size)
    if isinstance(image, Image.Image):
        return Sample(fit_image(image, size))
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        return fit_sample(Sample(image), size)
    raise _not_an_image(image)


def _not_an_image(image: object) -> UsageError:
    what = f"an array {image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
    return UsageError(
        f"An image must be a Sample, a PIL image or an (h, w, 3) uint8 array, not {what}; "
        "for files see gate.data.load_images."
    )
