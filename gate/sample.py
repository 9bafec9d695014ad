"""What is screened: images with what is known about them. Data only."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from gate.errors import ConfigurationError

REASONS = 3  # as many are told in a line
MIN_SAMPLES = 8  # below it no interval over samples means anything
MAX_SEED = 2**32 - 1  # what scikit-learn's folds take


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and what is known about it.

    image: (h, w, 3) uint8 RGB. caption: what the image shows. label: index into `SampleSet.classes`.
    mask: (h, w) integer, per-pixel class, an index into `SampleSet.mask_classes`; -1 marks unlabelled pixels.
    keypoints: (m, 2) float, (x, y) in pixels. source: where the image came from, for messages.
    """

    image: NDArray[np.uint8]
    caption: str | None = None
    label: int | None = None
    mask: NDArray[np.integer[Any]] | None = None
    keypoints: NDArray[np.floating[Any]] | None = None
    source: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ConfigurationError(
                f"A sample's image must be (h, w, 3) uint8; {self.source or 'this one'} is "
                f"{self.image.shape} {self.image.dtype}."
            )
        if self.mask is not None and self.mask.shape != self.image.shape[:2]:
            raise ConfigurationError(
                f"The mask of {self.source or 'a sample'} is {self.mask.shape}, its image {self.image.shape[:2]}; "
                "give both the same size."
            )
        if not self.id:
            object.__setattr__(self, "id", content_id(self.image))


def content_id(image: NDArray[np.uint8]) -> str:
    """Hash of an image's shape and bytes: 16 hexadecimal digits. image: (h, w, 3) uint8."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class SampleSet(Sequence[Sample]):
    """Samples of one data set, all of one size.

    classes: names of the image labels. mask_classes: names of the mask values, 0 first.
    skipped: (source, reason) of every file that was left out.
    """

    samples: tuple[Sample, ...]
    name: str = "samples"
    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> SampleSet: ...
    def __getitem__(self, index: int | slice) -> Sample | SampleSet:
        if isinstance(index, slice):
            return dataclasses.replace(self, samples=self.samples[index])
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def has_captions(self) -> bool:
        return bool(self.samples) and all(s.caption is not None for s in self.samples)

    @property
    def has_labels(self) -> bool:
        return bool(self.classes) and bool(self.samples) and all(s.label is not None for s in self.samples)

    @property
    def has_masks(self) -> bool:
        return (
            bool(self.mask_classes) and bool(self.samples) and all(s.mask is not None for s in self.samples)
        )

    def without(self, *truth: Literal["label", "mask", "keypoints"]) -> SampleSet:
        """The same samples without what is named, and without the path that may give it away."""
        blank = {what: None for what in truth}
        hidden = tuple(dataclasses.replace(s, source="", **blank) for s in self.samples)  # type: ignore[arg-type]
        return dataclasses.replace(self, samples=hidden)

    def fingerprint(self) -> str:
        """Hash over ids, captions, labels and masks, in order: 16 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for s in self.samples:
            digest.update(repr((s.id, s.caption, s.label)).encode())
            if s.mask is not None:
                digest.update(np.ascontiguousarray(s.mask, dtype=np.int32).tobytes())
        return digest.hexdigest()


def reasons(skipped: Iterable[tuple[str, str]]) -> str:
    """How many files were left out for which reason, with an example of each: the most frequent ones, in a line."""
    examples: dict[str, list[str]] = {}
    for source, reason in skipped:
        group = "is the same picture as another" if reason.startswith("is the same picture") else reason
        examples.setdefault(group, []).append(source)
    groups = sorted(examples.items(), key=lambda group: -len(group[1]))
    said = [f"{len(files)} ({files[0]}) {reason}" for reason, files in groups[:REASONS]]
    rest = sum(len(files) for _, files in groups[REASONS:])
    return "; ".join([*said, f"{rest} for other reasons, see data.skipped of results.json"] if rest else said)
