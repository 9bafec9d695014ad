"""A folder of anybody's images as samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from gate.data import sidecars
from gate.data.images import (
    ASPECT_TOLERANCE,
    UnreadableError,
    check_size,
    fit_image,
    fit_mask,
    read_mask,
    read_picture,
)
from gate.data.listing import Listing, check_any, left_out, list_folder
from gate.data.order import draw, interleave
from gate.errors import ConfigurationError, UsageError
from gate.sample import MIN_SAMPLES, Sample, SampleSet

MAX_UNREADABLE = 0.2  # past this share the folder is not what the user believes it is

PathLike = str | os.PathLike[str]


def load_images(
    folder: PathLike,
    *,
    size: int,
    limit: int | None = None,
    seed: int = 0,
    labels: PathLike | None = None,
    captions: PathLike | None = None,
    masks: PathLike | None = None,
    minimum: int = MIN_SAMPLES,
) -> SampleSet:
    """The images below `folder`, shorter side resized to `size`, centre-cropped to size x size.

    limit: how many to keep, drawn by `seed` from the files' names, evenly over the labels; a smaller limit
    keeps the first of a larger one. labels, captions: a csv with the columns file,label or file,caption; else
    labels.csv and captions.csv in the folder, subfolders as labels, NAME.txt as caption. masks: a folder of
    NAME.png with a class number per pixel (255: unlabelled) and, if wanted, classes.txt with the names;
    else the sibling FOLDER_masks.

    An image without a label is left out where labels are given, one without a mask where masks are given;
    a caption may be missing. Left out as well: unreadable files and folders, formats that are not read, pictures of
    less than 8 pixels a side or over 100 megapixels, second copies. `skipped` names each with its reason.

    Raises UsageError (no such folder, no images, impossible limit) and ConfigurationError (a wrong table,
    more than a fifth of the files unreadable, fewer than `minimum` samples).
    """
    check_size(size)
    if limit is not None and limit < minimum:
        raise UsageError(f"The limit of {limit} samples is too low; at least {minimum} are needed.")
    masks_at = sidecars.masks_folder(folder, masks)
    listing = list_folder(folder, without=masks_at)
    check_any(listing)
    reader = _reader(listing, size, labels, captions, masks_at)
    samples = _choose(reader, limit, seed)
    if len(samples) < minimum:
        left_out = (
            f" ({len(reader.skipped)} left out, the first: {_first(reader.skipped)})"
            if reader.skipped
            else ""
        )
        raise ConfigurationError(
            f"{str(folder)!r} has {len(samples)} readable samples{left_out}; at least {minimum} are needed."
        )
    return SampleSet(
        tuple(samples),
        name=listing.folder.resolve().name or "images",
        classes=reader.classes,
        mask_classes=_mask_classes(samples, masks_at),
        skipped=tuple(sorted(reader.skipped)),
    )


@dataclass
class _Reader:
    """Reads samples by key, each picture once, and keeps account of what could not be used."""

    listing: Listing
    size: int
    labels: dict[str, str]
    captions: dict[str, str | Path]
    masks: dict[str, Path] | None
    classes: tuple[str, ...]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)  # sample id -> key
    attempts: int = 0

    def usable(self) -> list[str]:
        """Keys of the images that have a label and a mask, where others have; the rest goes to `skipped`."""
        keys = []
        for key in self.listing.images:
            if self.labels and key not in self.labels:
                self.skipped.append((key, "has no label"))
            elif self.masks is not None and key not in self.masks:
                self.skipped.append((key, "has no mask"))
            else:
                keys.append(key)
        return keys

    def read_all(self, keys: Iterable[str]) -> Iterator[Sample]:
        """The usable samples among `keys`, read as they are asked for."""
        for key in keys:
            self.attempts += 1
            try:
                sample = self._read(key)
            except UnreadableError as error:
                self.unreadable.append((key, str(error)))
                self.skipped.append(self.unreadable[-1])
                continue
            if sample.id in self.seen:
                self.skipped.append((key, f"is the same picture as {self.seen[sample.id]}"))
                continue
            self.seen[sample.id] = key
            yield sample

    def _read(self, key: str) -> Sample:
        image = read_picture(self.listing.images[key])
        mask = None
        if self.masks is not None:
            classes = read_mask(self.masks[key])
            height, width = classes.shape
            if abs(width * image.height / (height * image.width) - 1) > ASPECT_TOLERANCE:
                raise UnreadableError(
                    f"its mask is {width} x {height} and the image, upright, {image.width} x {image.height}"
                )
            mask = fit_mask(classes, self.size)
        return Sample(
            fit_image(image, self.size),
            caption=sidecars.read_caption(self.captions[key]) if key in self.captions else None,
            label=self.classes.index(self.labels[key]) if self.labels else None,
            mask=mask,
            source=key,
        )


def _reader(
    listing: Listing, size: int, labels: PathLike | None, captions: PathLike | None, masks_at: Path | None
) -> _Reader:
    names = sidecars.find_labels(listing, labels)
    return _Reader(
        listing,
        size,
        labels=names,
        captions=sidecars.find_captions(listing, captions),
        masks=sidecars.find_masks(listing, masks_at) if masks_at else None,
        classes=sidecars.sort_classes(names.values()),
        skipped=left_out(listing),
    )


def _choose(reader: _Reader, limit: int | None, seed: int) -> list[Sample]:
    """The first `limit` samples of the seed's order, as many of each label as there are."""
    groups: dict[str, list[str]] = {}
    for key in sorted(reader.usable(), key=lambda key: draw(seed, key)):
        groups.setdefault(reader.labels.get(key, ""), []).append(key)
    stream = interleave({name: reader.read_all(keys) for name, keys in groups.items()}, seed)
    samples = list(islice(stream, limit))
    if len(reader.unreadable) > MAX_UNREADABLE * reader.attempts:
        for _ in stream:  # a few bad files among the first are no verdict on the folder: look at all of it
            pass
    if len(reader.unreadable) > MAX_UNREADABLE * reader.attempts:
        raise ConfigurationError(
            f"{len(reader.unreadable)} of {reader.attempts} images in {str(reader.listing.folder)!r} cannot "
            f"be used, more than {MAX_UNREADABLE:.0%}; the first: {_first(reader.unreadable)}. "
            "Repair or remove them."
        )
    return samples


def _mask_classes(samples: list[Sample], masks_at: Path | None) -> tuple[str, ...]:
    """Names of the mask values: lines of classes.txt, else the numbers up to the largest."""
    if masks_at is None:
        return ()
    values = np.unique([value for s in samples if s.mask is not None for value in np.unique(s.mask)])
    top = int(values.max(initial=0))
    if values.tolist() == [-1, 0]:
        raise ConfigurationError(
            f"The masks in {str(masks_at)!r} hold 0 and 255 only, and 255 is unlabelled; write objects as 1."
        )
    listed = masks_at / "classes.txt"
    if not listed.exists():
        return tuple(str(value) for value in range(top + 1))
    lines = sidecars.read_text(listed, repr(str(listed)), sidecars.CAPTION_BYTES).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) <= top:
        raise ConfigurationError(
            f"{str(listed)!r} names {len(names)} classes and a mask holds class {top}; "
            "give a line per class, 0 first."
        )
    return names


def _first(skipped: list[tuple[str, str]]) -> str:
    key, reason = min(skipped)
    return f"{key} {reason}"
