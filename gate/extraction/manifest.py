"""store.json: what a store was asked for, and once it is finished, which shards it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gate.errors import ConfigurationError, DamagedError, UsageError
from gate.names import harmless
from gate.runs.directory import plain, write_sealed
from gate.runs.seal import SEAL, check_seal, digest

SCHEMA_VERSION = 1
MANIFEST = "store.json"


class _Part(BaseModel):
    """Unknown fields are ignored: a later gate of the same version may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Layer(_Part):
    """A layer's features of one image. dtype: torch's word, such as bfloat16."""

    shape: tuple[int, ...]
    dtype: str


class Skipped(_Part):
    """An image that could not be read, and why."""

    file: str
    reason: str


class Entry(_Part):
    """A shard of the index. file: relative to the store. bytes: of that file. seal: the checksum that lies in it."""

    file: str
    rows: int
    bytes: int
    seal: str


class Manifest(_Part):
    """store.json.

    asked: what decides the numbers, as the caller put it. images: of the listing, unreadable ones too. listing: its
    checksum. layers, shards, skipped and projection (a seal) are there once the state is "finished".
    """

    schema_version: Literal[1] = 1
    gate_version: str
    state: Literal["begun", "finished"]
    command: str
    layout: str
    images: int
    per_shard: int
    listing: str
    asked: dict[str, Any]
    layers: dict[str, Layer] = {}
    shards: list[Entry] = []
    skipped: list[Skipped] = []
    projection: str | None = None

    @property
    def mark(self) -> str:
        """Of everything that decides what is in a shard; each shard carries it."""
        deciding = {"asked", "layout", "images", "per_shard", "listing"}
        return digest(plain(self.model_dump(include=deciding)))

    @property
    def count(self) -> int:
        """How many shards there are when all are there."""
        return -(-self.images // self.per_shard)

    @property
    def repeat(self) -> str:
        """The command that made it, as text for a sentence."""
        return harmless(self.command)


def listing_digest(names: Sequence[str]) -> str:
    """Of the names of a listing, in its order; names that are no text count by their bytes."""
    found = hashlib.blake2b(digest_size=16)
    for name in names:
        found.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """store.json, sealed, in one move. Raises OSError."""
    write_sealed(folder / MANIFEST, manifest)


def read_manifest(folder: Path) -> Manifest:
    """store.json of a store, finished or not.

    Raises UsageError where there is none or it is of a newer gate, DamagedError where it is not what was written.
    """
    file = folder / MANIFEST
    cure = "put it back, or extract into another folder"
    if not file.is_file():
        raise UsageError(f"{folder} holds no {MANIFEST}, so it is no store of features.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        version = raw["schema_version"]
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} is damaged; {cure}.") from error
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(
            f"{file} was written by a newer gate (schema {version}); upgrade gate-screen to read it."
        )
    if not raw.get(SEAL):
        raise DamagedError(f"{file} has lost its checksum; {cure}.")
    check_seal(raw, str(file), f"{cure}.")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DamagedError(f"{file} is damaged ({where}: {first['msg']}); {cure}.") from error


def differences(there: Mapping[str, Any], now: Mapping[str, Any], head: str = "") -> list[str]:
    """Which fields of what was asked differ, each as "timestep (50 there, 100 now)"; nested ones by a dotted path."""
    found = []
    for key in sorted({*there, *now}):
        old, new = there.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{head}{key}.")
        elif old != new:
            found.append(f"{head}{key} ({_short(old)} there, {_short(new)} now)")
    return found


def _short(value: Any) -> str:
    text = harmless(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
