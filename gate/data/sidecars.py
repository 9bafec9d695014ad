"""What lies beside the images of a folder: captions, labels and masks, found by name."""

from __future__ import annotations

import csv
import difflib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from gate.data.listing import Listing, list_folder, normalise
from gate.errors import ConfigurationError, UsageError

CAPTION_BYTES, TABLE_BYTES = 1 << 20, 256 << 20  # more is no caption, and no table of a folder
Named = TypeVar("Named", str, Path)


def check_folder(images: str | None, **beside: str | None) -> None:
    """Refuse paths that lead nowhere, before anything heavy is imported. beside: flag -> what lies beside the images.

    Raises UsageError.
    """
    for flag, path in beside.items():
        if path is None:
            continue
        if images is None:
            raise UsageError(f"--{flag} belongs to a folder of images; give --images DIR too.")
        if not Path(path).exists():
            raise UsageError(f"There is no {path!r} for --{flag}; check the path.")
    if images is not None and not Path(images).is_dir():
        what = "is a file" if Path(images).exists() else "does not exist"
        raise UsageError(f"{images!r} {what}; give the folder that holds the images.")


def stem(key: str) -> str:
    """A key without its extension."""
    return PurePosixPath(key).with_suffix("").as_posix()


def find_captions(listing: Listing, table: str | os.PathLike[str] | None) -> dict[str, str | Path]:
    """key -> caption, or the text file that holds it. An image may have none.

    table: a csv with the columns file,caption; it alone is then used. Else captions.csv of the folder, and
    NAME.txt beside an image that the table does not name.
    """
    files = {} if table is not None else caption_files(listing)
    return {**{key: listing.others[text] for key, text in files.items()}, **caption_table(listing, table)}


def caption_table(listing: Listing, table: str | os.PathLike[str] | None) -> dict[str, str]:
    """key -> caption, of a csv with the columns file,caption: the one given, else captions.csv of the folder."""
    own = listing.folder / "captions.csv"
    if table is None and not own.exists():
        return {}
    rows = read_table(Path(table) if table is not None else own, "caption", listing)
    return {key: " ".join(text.split()) for key, text in rows.items()}


def caption_files(listing: Listing) -> dict[str, str]:
    """key -> key of the NAME.txt beside the image."""
    return match_stems(listing.images, {stem(key): key for key in listing.others if key.endswith(".txt")})


def read_caption(source: str | Path) -> str | None:
    """A caption, or the text of its file with white space made single. None when it is blank."""
    if isinstance(source, str):
        return source or None
    return " ".join(read_text(source, f"The caption file {source.name}", CAPTION_BYTES).split()) or None


def read_text(path: Path, what: str, limit: int) -> str:
    """A small UTF-8 file. what: the file, for the message.

    Raises ConfigurationError where it is no regular file (a pipe or a device may never end), has more than `limit`
    bytes, or is no text.
    """
    try:
        number = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
        )  # a pipe that nobody writes would wait
        with open(number, "rb") as stream:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise ConfigurationError(f"{what} is a pipe or a device; save it as a file first.")
            data = stream.read(limit + 1)  # some files of /proc have no size and no end
        if len(data) > limit:
            raise ConfigurationError(f"{what} has more than {limit:,} bytes; shorten it, or take it away.")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what} cannot be read as UTF-8 text ({error}).") from error


def find_labels(listing: Listing, table: str | os.PathLike[str] | None) -> dict[str, str]:
    """key -> class name; empty without labels.

    From a csv with the columns file,label: the argument, else labels.csv of the folder. Else from the
    subfolders, where every image lies in one and there are two or more.
    """
    own = listing.folder / "labels.csv"
    if table is not None or own.exists():
        rows = read_table(Path(table) if table is not None else own, "label", listing)
        return {key: label for key, label in rows.items() if label}
    folders = {key: PurePosixPath(key).parts[0] for key in listing.images if "/" in key}
    labelled = len(folders) == len(listing.images) and len(set(folders.values())) >= 2
    return folders if labelled else {}


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Class names once each: by number where all are numbers, else by name."""
    unique = set(names)
    if all(name.isdecimal() for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))


def masks_folder(folder: str | os.PathLike[str], masks: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the masks: the argument, else the sibling FOLDER_masks where there is one."""
    if masks is not None:
        return Path(masks)
    resolved = Path(folder).resolve()
    sibling = resolved.with_name(f"{resolved.name}_masks") if resolved.name else resolved
    return sibling if resolved.name and sibling.is_dir() else None


def find_masks(listing: Listing, folder: Path) -> dict[str, Path]:
    """key -> mask file: at the same place in `folder`, or anywhere in it under a name that one image has."""
    files = [(key, path) for key, path in list_folder(folder).images.items() if path.suffix.lower() == ".png"]
    found = match_stems(listing.images, {stem(key): path for key, path in files})
    if not found:
        names: dict[str, Path] = {}
        for key, path in files:
            name = PurePosixPath(key).stem
            if names.setdefault(name, path) != path:
                raise ConfigurationError(
                    f"Two masks in {folder.name!r} are named {name}.png; lay them out as the images."
                )
        found = match_stems(listing.images, names, flat=True)
    if not found:
        raise ConfigurationError(
            f"No mask in {str(folder)!r} has the name of an image in {str(listing.folder)!r}; "
            "the mask of a/photo.jpg is a/photo.png."
        )
    return found


def match_stems(
    images: Iterable[str], companions: Mapping[str, Named], *, flat: bool = False
) -> dict[str, Named]:
    """key -> companion of the same stem (flat: of the same bare name). Refuses one that two images share."""
    if not companions:
        return {}
    stems = {key: PurePosixPath(key).stem if flat else stem(key) for key in images}
    owners = Counter(stems.values())
    found = {}
    for key, name in stems.items():
        if name not in companions:
            continue
        if owners[name] > 1:
            rivals = " and ".join([k for k, other in stems.items() if other == name][:2])
            raise ConfigurationError(
                f"{PurePath(companions[name]).name} could belong to {rivals}; give them different names."
            )
        found[key] = companions[name]
    return found


def read_table(path: Path, column: str, listing: Listing) -> dict[str, str]:
    """key -> value of a csv with the columns file,COLUMN; file: a path inside the folder, or a bare name."""
    if not path.exists() or path.is_dir():
        raise UsageError(
            f"There is no file {str(path)!r}; it should be a csv with the columns file,{column}."
        )
    by_name: dict[str, list[str]] = {}
    for key in listing.images:
        by_name.setdefault(PurePosixPath(key).name, []).append(key)
    found: dict[str, str] = {}
    unknown: list[tuple[int, str]] = []
    for line, file, value in _rows(path, column):
        key = _key(file, listing)
        if key not in listing.images:
            candidates = by_name.get(key, [])
            if len(candidates) > 1:
                raise ConfigurationError(
                    f"{path.name}, line {line}: {file!r} could be {candidates[0]} or {candidates[1]}; "
                    "write the path."
                )
            if not candidates:
                unknown.append((line, file))
                continue
            key = candidates[0]
        if key in found:
            raise ConfigurationError(
                f"{path.name}, line {line}: {key!r} is named twice; keep one row per file."
            )
        found[key] = value
    if unknown:
        line, file = unknown[0]
        near = difflib.get_close_matches(file, list(listing.images), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(
            f"{path.name} names {len(unknown)} file(s) that are no images of {str(listing.folder)!r}, "
            f"the first in line {line}: {file!r}.{hint}"
        )
    return found


def _key(file: str, listing: Listing) -> str:
    path = Path(file.strip())
    if path.is_absolute() and path.is_relative_to(listing.folder.absolute()):
        return normalise(path.relative_to(listing.folder.absolute()).as_posix())
    return normalise(file)


def _rows(path: Path, column: str) -> list[tuple[int, str, str]]:
    """(line, file, value) of every row, stripped."""
    rows = []
    text = read_text(path, path.name, TABLE_BYTES)
    try:
        with io.StringIO(text, newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            missing = [name for name in ("file", column) if name not in header]
            if missing:
                raise ConfigurationError(
                    f"{path.name} lacks the column {' and '.join(missing)}: "
                    f"its first line must name file,{column}, "
                    f"and is {','.join(header) or 'empty'!r}."
                )
            reader.fieldnames = header
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigurationError(
                        f"{path.name}, line {reader.line_num}: there must be {len(header)} fields; "
                        "put text that holds a comma in double quotes."
                    )
                rows.append((reader.line_num, row["file"].strip(), row[column].strip()))
    except csv.Error as error:
        raise ConfigurationError(f"{path.name} cannot be read as a UTF-8 csv ({error}).") from error
    return rows
