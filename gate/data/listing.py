"""The files of a folder by their keys: only names are held, however many there are.

Every image is known by its key: its path relative to the folder, with forward slashes, in Unicode's NFC form
(file systems differ in the form they keep; tables are written in NFC by nearly everybody).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gate.data.images import EXTENSIONS, FOREIGN
from gate.errors import UsageError

_ODD = re.compile(r"^\s|\s$|\\|//|/$|(^|/)\.(/|$)")  # what makes an ASCII name another key


class Files(Mapping[str, Path]):
    """key -> path of files below a folder, in the order of the keys. Names are kept, and a path is made when it is
    asked for: a hundred thousand files take a few megabytes."""

    def __init__(self, folder: Path, written: Mapping[str, str]) -> None:
        self.folder, self._written = folder, written

    def __getitem__(self, key: str) -> Path:
        return Path(self.folder, self._written[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._written)

    def __len__(self) -> int:
        return len(self._written)

    def __contains__(self, key: object) -> bool:
        return key in self._written


@dataclass(frozen=True)
class Listing:
    """Files of a folder, sorted. images: key -> path. others: key -> path of the files that are no images.

    closed: (key, reason) of the folders in it that cannot be read."""

    folder: Path
    images: Files
    others: Files
    closed: tuple[tuple[str, str], ...] = ()


def list_folder(folder: str | os.PathLike[str], *, without: Path | None = None) -> Listing:
    """Every file below a folder but hidden ones and the folder `without`. Follows links, each folder once.

    Raises UsageError where the folder itself cannot be read; one below it is named in `closed`.
    """
    root = Path(folder)
    if not root.exists():
        raise UsageError(f"There is no folder {str(folder)!r}.")
    if not root.is_dir():
        raise UsageError(f"{str(folder)!r} is a file; give the folder that holds the images.")
    found: dict[str, str] = {}  # key -> the file's name below the folder, as the system writes it
    visited = {os.path.realpath(without)} if without else set()
    closed: list[tuple[str, str]] = []

    def shut(error: OSError) -> None:
        where = Path(str(error.filename))
        if where == root:
            raise UsageError(f"Cannot read the folder {error.filename!r}: {error.strerror}.") from error
        key = normalise(where.relative_to(root).as_posix())
        closed.append((f"{key}/", f"cannot be opened ({error.strerror})"))

    for parent, folders, files in os.walk(root, followlinks=True, onerror=shut):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        below = Path(parent).relative_to(root).as_posix()
        head = "" if below == "." else f"{below}/"
        for file in files:
            if not file.startswith("."):
                found[normalise(head + file)] = head + file
    images: dict[str, str] = {}
    others: dict[str, str] = {}
    for key, name in sorted(found.items()):
        (images if os.path.splitext(name)[1].lower() in EXTENSIONS else others)[key] = name
    return Listing(root, Files(root, images), Files(root, others), tuple(sorted(closed)))


def normalise(name: str) -> str:
    """A name as a table or a system writes it, as a key."""
    if name and name.isascii() and not _ODD.search(name):  # nearly all: a key already
        return name
    return unicodedata.normalize("NFC", PurePosixPath(name.strip().replace("\\", "/")).as_posix())


def left_out(listing: Listing) -> list[tuple[str, str]]:
    """(key, reason) of what a listing shows to be of no use before any file is opened."""
    foreign = [
        (key, f"is {PurePosixPath(key).suffix.lower()}, which is not read; convert it to PNG or JPEG")
        for key in listing.others
        if key.lower().endswith(FOREIGN)
    ]
    return [*listing.closed, *foreign]


def check_any(listing: Listing) -> None:
    """Refuse a folder that holds no images. Raises UsageError."""
    if listing.images:
        return
    known = " ".join(EXTENSIONS)
    if not listing.others:
        raise UsageError(f"The folder {str(listing.folder)!r} is empty; it should hold images ({known}).")
    raise UsageError(
        f"The folder {str(listing.folder)!r} holds {len(listing.others)} files, "
        f"none of them an image ({known})."
    )
