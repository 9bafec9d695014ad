"""One cell of a study: the numbers of a technique at a timestep of a domain, in a file of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gate.errors import ConfigurationError, DamagedError
from gate.runs.directory import plain, read_arrays, write_arrays
from gate.study.plan import CellKey

Array = NDArray[Any]


@dataclass(eq=False)
class Cell:
    """What is kept; features are not.

    leak: why the technique carries the image's own pixels, "" = it does not. calls: of the denoiser per image.
    drawn: {quantity: a number for each draw of `draws_of`}, NaN where it could not be made. single: {quantity: (n,) or
    (layers, n)}, a number per screening image. columns: {probe: (rows, m)}, additive columns of every draw's images,
    draws end to end. truth: {task: (seeds, test samples, m)}, columns of the task's primary measure. seconds: of the
    parts, "pass" per image, "n=8" ... of all quantities of a draw, "head TASK" of a training.
    """

    key: CellKey
    leak: str = ""
    calls: float = 1.0
    drawn: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    single: dict[str, Array] = field(default_factory=dict)
    columns: dict[str, Array] = field(default_factory=dict)
    truth: dict[str, Array] = field(default_factory=dict)

    def heads(self, task: str) -> Array:
        """Of each head, (seeds, n test samples, m). Raises ConfigurationError where the cell holds no such task."""
        if task not in self.truth:
            raise ConfigurationError(f"{self.key} holds no {task}; it is of another study.")
        return self.truth[task]

    def errors(self, task: str, counts: Array) -> Array:
        """The primary figure's error of each head on test samples that count so often; counts (m, n) -> (seeds, m)."""
        from gate.tasks import find_task

        measure, heads = find_task(task).measures[0], self.heads(task).astype(np.float64)
        return np.stack([measure.errors(c[:, None], counts)[..., 0] for c in heads])


def file_of(folder: Path, key: CellKey) -> Path:
    """Where a cell lies."""
    name = hashlib.blake2b(key.technique.encode(), digest_size=6).hexdigest()
    return folder / "cells" / f"{key.domain}-{key.timestep}-{name}.safetensors"


def has_cell(folder: Path, key: CellKey) -> bool:
    return file_of(folder, key).is_file()


def save_cell(folder: Path, cell: Cell) -> None:
    """In one move: a study that is killed has whole cells only."""
    arrays = {
        f"{table}/{name}": np.asarray(value, np.float32)
        for table in ("single", "columns", "truth")
        for name, value in getattr(cell, table).items()
    }
    facts = {
        "domain": cell.key.domain,
        "timestep": cell.key.timestep,
        "technique": cell.key.technique,
        "leak": cell.leak,
        "calls": cell.calls,
        "drawn": cell.drawn,
        "seconds": cell.seconds,
    }
    file = file_of(folder, cell.key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(file, arrays, cell=json.dumps(plain(facts)))


def load_cell(file: Path) -> Cell:
    """Raises DamagedError where it is not what was written."""
    arrays, facts = read_arrays(file)
    if "cell" not in facts:
        raise DamagedError(f"{file} is no cell of a study; remove it, and gate study makes it anew.")
    said = json.loads(facts["cell"])
    key = CellKey(said["domain"], int(said["timestep"]), said["technique"])
    drawn = {k: [float("nan") if x is None else float(x) for x in v] for k, v in said["drawn"].items()}
    cell = Cell(key, said["leak"], float(said["calls"]), drawn, said["seconds"])
    for name, value in arrays.items():
        table, _, rest = name.partition("/")
        getattr(cell, table)[rest] = value
    return cell


def load_cells(folder: Path) -> list[Cell]:
    """Every finished cell of a study, in order of their files' names."""
    return [load_cell(file) for file in sorted((folder / "cells").glob("*.safetensors"))]
