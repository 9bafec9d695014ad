"""A run directory: run.json, journal.jsonl, scores.safetensors, pictures.safetensors, results.json, figures/.

`run.json` says what was asked and with what; `journal.jsonl` grows by a line per finished technique; `parts/` holds
finished techniques of an unfinished run, so that an interrupted one loses nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from gate.errors import ConfigurationError, UsageError
from gate.runs.schema import Results, check_shapes, read_results


@dataclass(frozen=True)
class Run:
    """A finished run that is read: `results` is results.json, the arrays are loaded when asked for."""

    path: Path
    results: Results

    @functools.cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """scores.safetensors by key; the axes are in `results.axes`. Raises UsageError where the two differ."""
        file = self.path / "scores.safetensors"
        arrays = read_arrays(file)
        check_shapes(arrays, self.results.axes, str(file))
        return arrays

    @functools.cached_property
    def pictures(self) -> dict[str, NDArray[Any]]:
        """pictures.safetensors by key; empty where none were made."""
        file = self.path / "pictures.safetensors"
        return read_arrays(file) if file.is_file() else {}


def open_run(path: str | Path) -> Run:
    """A run by its directory. Raises UsageError where it holds no readable results."""
    folder = Path(path)
    file = folder / "results.json"
    if not file.is_file():
        hint = (
            f" It was interrupted; finish it with: gate resume {folder}"
            if (folder / "run.json").is_file()
            else ""
        )
        raise UsageError(f"{folder} holds no results.json, so it is not a finished run.{hint}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise UsageError(f"{file} is damaged; screen again.") from error
    return Run(folder, read_results(raw, str(file)))


def create_directory(output: str | None) -> Path:
    """A new, empty run directory. Raises UsageError where it exists, ConfigurationError where it can't be written."""
    if output is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = Path("runs") / stamp
        for suffix in range(2, 1000):
            if not folder.exists():
                break
            folder = Path("runs") / f"{stamp}-{suffix}"
    else:
        folder = Path(output).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder} exists already; choose another --output, or finish it: gate resume {folder}"
            )
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror}); choose another --output."
        ) from error
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one move, NaN as null: a reader never sees half a file."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def append_journal(folder: Path, **entry: Any) -> None:
    """One line of what happened, flushed to the disk."""
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(plain(entry), allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A safetensors file, written in one move."""
    from safetensors.numpy import save_file

    temporary = path.with_suffix(".tmp")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary)
    temporary.chmod(0o644)  # as every other file of the run; safetensors makes it private
    os.replace(temporary, path)


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """A safetensors file. Raises UsageError where it is missing or damaged."""
    from safetensors.numpy import load_file

    try:
        return dict(load_file(file))
    except Exception as error:  # safetensors raises its own kinds for a missing and for a damaged file
        raise UsageError(f"{file} is missing or damaged; screen again.") from error


def plain(value: Any) -> Any:
    """JSON's own types; NaN and infinity become None."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
