"""A folder of any number of images: listed once, read chunk by chunk, decoded ahead of the model.

A file's sample is the one that `gate.data.load_images` makes of it, so its id, its noise and its features are those of
a screening. What differs: labels and masks are not read, every file keeps its row (also a second copy of a picture),
and one that cannot be read is a reason beside its name, never the end.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gate.data import sidecars
from gate.data.images import check_size, fit_image, read_picture
from gate.data.listing import Listing, check_any, left_out, list_folder
from gate.errors import ConfigurationError
from gate.sample import Sample

PathLike = str | os.PathLike[str]
Skipped = tuple[str, str]  # key and reason
Rows = slice | Sequence[int]

THREADS = 2  # decoders release Python's lock; two keep up with a CPU's model, and leave it the cores
AHEAD = 64  # images that wait for the model: 50 MB of them at 512 px


@dataclass(frozen=True, eq=False)
class ImageStream:
    """The images of a folder, by row of their sorted listing. Only names are held, and a table's captions.

    keys: relative names with forward slashes. size: pixels a side of the samples. left_out: (key, reason) of what the
    listing shows to be of no use: folders that cannot be opened, formats that are not read; they have no row.
    """

    folder: Path
    size: int
    keys: tuple[str, ...]
    left_out: tuple[Skipped, ...] = ()
    _listing: Listing = field(kw_only=True, repr=False)
    _table: dict[str, str] = field(kw_only=True, repr=False)  # key -> caption
    _texts: dict[str, str] = field(kw_only=True, repr=False)  # key -> key of the caption's file

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def has_captions(self) -> bool:
        """Whether every image has one, as far as names tell: a blank text file is found when it is read."""
        return all(self._table.get(key, key in self._texts) for key in self.keys)

    def read(self, rows: Rows) -> tuple[list[Sample], list[Skipped]]:
        """The samples of these rows, in their order, and (key, reason) of those that cannot be read."""
        return parted(self.sample(row) for row in _rows(rows, len(self)))

    def sample(self, row: int) -> Sample | Skipped:
        """One row's sample, or its key and why there is none."""
        key = self.keys[row]
        try:
            image = fit_image(read_picture(self._listing.images[key]), self.size)
            return Sample(image, caption=self._caption(key), source=key)
        except ConfigurationError as error:  # of the picture, or of its caption's file
            return key, str(error)

    def _caption(self, key: str) -> str | None:
        """A table's row wins over the text file, even where it is blank: as for `load_images`."""
        if key in self._table or key not in self._texts:
            return self._table.get(key) or None
        return sidecars.read_caption(self._listing.others[self._texts[key]])

    def each(
        self, rows: Iterable[int], *, threads: int = THREADS, ahead: int = AHEAD
    ) -> Generator[Sample | Skipped, None, None]:
        """`sample` of each row, in order. Threads decode up to `ahead` rows before they are asked for, never more."""
        waiting: deque[Future[Sample | Skipped]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="gate-images")
        try:
            for row in rows:
                waiting.append(pool.submit(self.sample, row))
                if len(waiting) >= max(1, ahead):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def open_images(
    folder: PathLike, *, size: int, captions: PathLike | None = None, masks: PathLike | None = None
) -> ImageStream:
    """List the images below a folder, to be read as samples of size x size.

    captions: a csv with the columns file,caption; else captions.csv in the folder, and NAME.txt beside an image.
    masks: a folder that is left out, though it may lie inside; else the sibling FOLDER_masks, as in a screening.

    Raises UsageError where there is no folder or no image in it, ConfigurationError where the captions' table is wrong
    or not one image can be read: they are tried from the first, so where that one is sound nothing else is opened.
    """
    check_size(size)
    listing = list_folder(folder, without=sidecars.masks_folder(folder, masks))
    check_any(listing)
    stream = ImageStream(
        listing.folder,
        size,
        tuple(listing.images),
        tuple(sorted(left_out(listing))),
        _listing=listing,
        _table=sidecars.caption_table(listing, captions),
        _texts={} if captions is not None else sidecars.caption_files(listing),
    )
    first: Skipped | None = None
    for row in range(len(stream)):
        found = stream.sample(row)
        if isinstance(found, Sample):
            return stream
        first = first or found
    assert first is not None, "a listing without images is refused above"
    raise ConfigurationError(
        f"None of the {len(stream)} images in {str(folder)!r} can be read; the first: {first[0]} {first[1]}. "
        "Repair or replace them."
    )


def _rows(rows: Rows, n: int) -> Sequence[int]:
    return range(n)[rows] if isinstance(rows, slice) else rows


def parted(found: Iterable[Sample | Skipped]) -> tuple[list[Sample], list[Skipped]]:
    """The samples, and what there is none of, each in its order."""
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    for one in found:
        if isinstance(one, Sample):
            samples.append(one)
        else:
            skipped.append(one)
    return samples, skipped
