"""Finished techniques of an unfinished run, a file each: whatever fields their numbers have."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gate.errors import DamagedError
from gate.runs.directory import read_arrays, write_arrays
from gate.runs.leftovers import leftovers
from gate.runs.seal import SEAL

T = TypeVar("T")
NUMBER = "number/"


def save_part(folder: Path, name: str, part: Any, mark: str) -> None:
    """Keep one finished technique until the whole run is written.

    part: a dataclass of arrays (None: not there), {name: array} and numbers. mark: of the configuration that made it
    (`gate.runs.directory.mark_of`). Raises TypeError for any other field: what is not stored would be missing after a
    resume.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for key, value in ((f.name, getattr(part, f.name)) for f in dataclasses.fields(part)):
        if isinstance(value, dict):
            arrays |= {f"{key}/{inner}": array for inner, array in value.items()}
        elif isinstance(value, np.ndarray):
            arrays[key] = value
        elif isinstance(value, (int, float)):
            arrays[NUMBER + key] = np.array(value, np.float64)
        elif value is not None:
            raise TypeError(
                f"{key} of {type(part).__name__} is a {type(value).__name__}, which no part can hold"
            )
    write_arrays(_file(folder, name), arrays, technique=name, mark=mark)


def has_part(folder: Path, name: str) -> bool:
    """Whether `save_part` kept this one."""
    return _file(folder, name).is_file()


def load_part(folder: Path, name: str, kind: type[T], mark: str) -> T | None:
    """What `save_part` kept, as the dataclass it was; None where there is nothing.

    Raises DamagedError where the file is not what was written, is another technique's, or of another configuration.
    """
    file = _file(folder, name)
    if not file.is_file():
        return None
    try:
        arrays, facts = read_arrays(file)
    except DamagedError as error:
        raise DamagedError(
            f"{file}, which holds {name}, is damaged; delete it, and gate resume {folder} measures {name} again."
        ) from error
    if facts.get("technique") != name or SEAL not in facts:
        told = f"holds {facts['technique']}" if SEAL in facts else "has no checksum"
        raise DamagedError(
            f"{file} should hold {name} and {told}; delete it, and gate resume {folder} measures {name} again."
        )
    if facts["mark"] != mark:
        raise DamagedError(
            f"{file}, which holds {name}, was measured with other settings than run.json says; "
            "put run.json back, or screen again."
        )
    part = kind()
    for key in (f.name for f in dataclasses.fields(part)):  # type: ignore[arg-type]
        if NUMBER + key in arrays:
            setattr(part, key, arrays[NUMBER + key].item())
        elif isinstance(getattr(part, key), dict):
            head = f"{key}/"
            setattr(part, key, {k[len(head) :]: v for k, v in arrays.items() if k.startswith(head)})
        else:
            setattr(part, key, arrays.get(key))
    return part


def any_part(folder: Path) -> bool:
    """Whether anything at all is finished."""
    return any(folder.glob("parts/*.safetensors"))


def drop_parts(folder: Path) -> None:
    """The whole run is written; the parts are no longer needed, nor is what killed writers left beside them."""
    drop_leftovers(folder)
    shutil.rmtree(folder / "parts", ignore_errors=True)


def drop_leftovers(folder: Path) -> None:
    """Delete the temporary files of writers that were killed. folder: a run's, and nobody writes to it."""
    for file in leftovers(folder, folder / "parts"):
        with contextlib.suppress(OSError):
            file.unlink()


def _file(folder: Path, name: str) -> Path:
    return folder / "parts" / f"{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.safetensors"
