"""A run directory: run.json, journal.jsonl, scores, pictures and states (.safetensors), results.json, figures/.

`run.json` says what was asked and with what; `journal.jsonl` grows by a line per finished technique; `parts/` holds
finished techniques of an unfinished run, so that an interrupted one loses nothing. All but the journal and the figures
are written in one move and carry a seal (`gate.runs.seal`); arrays carry the mark of their configuration too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from gate.errors import ConfigurationError, DamagedError, GateError, UsageError
from gate.runs.schema import Results, check_shapes, read_results
from gate.runs.seal import SEAL, check_seal, digest, digest_arrays, sealed
from gate.runs.states import STATES, parted

SCORES, PICTURES = "scores.safetensors", "pictures.safetensors"
FULL = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
)  # the disk's, not the caller's


@dataclass(frozen=True)
class Run:
    """A finished run that is read: `results` is results.json, the arrays are loaded when asked for."""

    path: Path
    results: Results

    @functools.cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """scores.safetensors by key; the axes are in `results.axes`. Raises DamagedError where the two differ."""
        arrays = self._read(SCORES)
        check_shapes(arrays, self.results.axes, str(self.path / SCORES))
        return arrays

    @functools.cached_property
    def pictures(self) -> dict[str, NDArray[Any]]:
        """pictures.safetensors by key; empty where none were made."""
        return self._read(PICTURES) if (self.path / PICTURES).is_file() else {}

    @functools.cached_property
    def states(self) -> dict[str, dict[str, NDArray[Any]]]:
        """What techniques learned, by name and key; of those alone that have a state (`gate.runs.states.unpacked`)."""
        if not self.results.learned:
            return {}
        return parted(self._read(STATES), self.results.learned)

    def _read(self, name: str) -> dict[str, NDArray[Any]]:
        arrays, facts = read_arrays(self.path / name)
        wanted = self.results.hashes.get(name.partition(".")[0])
        if wanted is not None and facts.get(SEAL) != wanted:
            raise DamagedError(
                f"{self.path / name} is not the file that results.json was made from; {SCREEN}."
            )
        return arrays

    @property
    def sealed(self) -> bool:
        """Whether its files carry checksums; those of older gates do not."""
        return bool(self.results.digest)


SCREEN = "put the file back, or screen again"


def open_run(path: str | Path) -> Run:
    """A run by its directory; its files are compared with their seals.

    Raises UsageError where it is no finished run, DamagedError where a file is not what was written.
    """
    folder = Path(path)
    run = Run(folder, load_results(folder))
    if run.sealed:
        _ = run.arrays, run.pictures, run.states
        if (folder / "run.json").is_file() and mark_of(read_run(folder)) != mark_of(run.results.model_dump()):
            raise DamagedError(f"run.json and results.json of {folder} are not of one run; {SCREEN}.")
    return run


def load_results(folder: Path) -> Results:
    """results.json alone. Raises UsageError where there is none, DamagedError where it is not what was written."""
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
        raise DamagedError(f"{file} is damaged; make it anew: gate resume {folder}") from error
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}).") from error
    return read_results(raw, str(file))


def read_run(folder: Path) -> dict[str, Any]:
    """run.json. Raises UsageError where there is none, DamagedError where it is not what was written."""
    file = folder / "run.json"
    try:
        if not file.is_file():  # a pipe would never end
            raise FileNotFoundError(file)
        raw = json.loads(file.read_text(encoding="utf-8"))
        _ = raw["config"]
    except OSError as error:
        raise UsageError(f"{folder} holds no readable run.json, so there is nothing to resume.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} is damaged; {SCREEN}.") from error
    check_seal(raw, str(file), "undo the change, or screen again.")
    return dict(raw)


def mark_of(run: Mapping[str, Any]) -> str:
    """What numbers are made from, as a checksum: the configuration, the weights and the samples of a run.json."""
    hashes = {k: run["hashes"][k] for k in ("weights", "samples")}
    return digest({"config": plain(run["config"]), "hashes": hashes})


def create_directory(output: str | None) -> Path:
    """A new run directory, holding nothing but an empty `parts`.

    Raises UsageError where it exists, ConfigurationError where it can't be written. One that a killed run left before
    it wrote anything is taken as new.
    """
    if output is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = Path("runs") / stamp
        for suffix in range(2, 1000):
            if not folder.exists():
                break
            folder = Path("runs") / f"{stamp}-{suffix}"
    else:
        folder = Path(output).expanduser()
        try:
            if folder.exists() and not _is_bare(folder):
                begun = (folder / "run.json").is_file()
                finish = f", or finish it: gate resume {folder}" if begun else ""
                raise UsageError(f"{folder} exists already; choose another --output{finish}.")
        except OSError as error:
            raise _not_written(folder, error) from error
    try:
        (folder / "parts").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error
    return folder


def _is_bare(folder: Path) -> bool:
    """Whether a folder holds nothing, or what a run makes before its first file is there."""
    if not folder.is_dir():
        return False
    names = {f.name for f in folder.iterdir()}
    return names <= {"parts", "run.json.tmp"} and not any(folder.glob("parts/*"))


def _not_written(folder: Path, error: OSError) -> GateError:
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{str(folder)[:40]}... is too long a path; choose another --output.")
    return ConfigurationError(f"{folder} cannot be written ({error.strerror}); choose another --output.")


@contextlib.contextmanager
def one_move(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when it is written, and on the disk: a reader never sees half a file."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one move, NaN as null. Raises OSError where it cannot be written."""
    with one_move(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_sealed(path: Path, value: Any) -> None:
    """`write_json` of an object with its seal."""
    write_json(path, sealed(plain(value)))


def append_journal(folder: Path, **entry: Any) -> None:
    """One line of what happened, on the disk; all of it or nothing. Raises OSError."""
    line = (json.dumps(plain(entry), allow_nan=False) + "\n").encode()
    with (folder / "journal.jsonl").open("ab", buffering=0) as stream:
        before = stream.tell()
        try:
            if stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """What happened, a dictionary each; lines that do not read are left out."""
    entries = []
    file = folder / "journal.jsonl"
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], **facts: str) -> str:
    """A sealed safetensors file, written in one move; returns the seal. facts: what it says of itself.

    Raises OSError where it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    seal = digest_arrays(arrays, facts)
    with one_move(path) as temporary:
        try:
            said = json.dumps(
                {**facts, SEAL: seal}, sort_keys=True
            )  # one text: safetensors keeps no order of many
            # numpy's ascontiguousarray would give a number without axes one
            ordered = {k: np.require(v, requirements="C") for k, v in arrays.items()}
            save_file(ordered, temporary, {"gate": said})
        except SafetensorError as error:
            raise disk_error(error) from error
        temporary.chmod(0o644)  # as every other file of the run; safetensors makes it private
    return seal


def disk_error(error: Exception) -> OSError:
    """What safetensors could not write, as the system's error: it says the number in its text alone."""
    code = re.search(r"os error (\d+)", str(error))
    number = int(code[1]) if code else errno.EIO
    return OSError(number, os.strerror(number))


def read_arrays(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """A safetensors file and what it says of itself. Raises DamagedError where it is missing or not what was written.

    A file without a seal is an older gate's, and passes.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            facts = dict(json.loads((opened.metadata() or {}).get("gate", "{}")))
            arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own kinds for a missing and for a damaged file
        raise DamagedError(f"{file} is missing or damaged; {SCREEN}.") from error
    if SEAL in facts and digest_arrays(arrays, {k: v for k, v in facts.items() if k != SEAL}) != facts[SEAL]:
        raise DamagedError(f"{file} was changed after gate wrote it; {SCREEN}.")
    return arrays, facts


def plain(value: Any) -> Any:
    """JSON's own types; NaN and infinity become None, bytes of a file name that are no text are spelled out."""
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
    if isinstance(value, (int, bool, type(None))):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()
