"""The folder that a store is written to: made, held for one run, and what the disk refuses said in sentences."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gate.errors import FULL, ConfigurationError, UsageError
from gate.extraction.manifest import MANIFEST
from gate.extraction.shard import SHARDS
from gate.names import harmless

PATIENCE = 10.0  # seconds; workers of a killed run need a moment to notice


def make_room(folder: Path) -> None:
    """The folder, where it is new, empty, or a store. Raises UsageError."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    begun = {f"{MANIFEST}.tmp", SHARDS}  # a run that was killed before it wrote anything
    names = {entry.name for entry in folder.iterdir()}
    if MANIFEST not in names and (names - begun or any(folder.glob(f"{SHARDS}/*"))):
        raise UsageError(f"{folder} exists already and is no store of features; choose another --output.")


@contextlib.contextmanager
def keeping(folder: Path, command: str) -> Iterator[None]:
    """The disk's errors as sentences: whole shards are kept, and it is said how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise ConfigurationError(
                f"{folder} cannot be written ({error.strerror}); whole shards are kept: make room, and repeat the "
                f"command: {harmless(command)}"
            ) from error
        raise ConfigurationError(
            f"{folder} cannot be written ({error.strerror}); choose another --output."
        ) from error


def hold(folder: Path) -> int | None:
    """Hold the folder, for this process and its forks. None where the system or its file system knows no locks.

    Raises ConfigurationError where another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                os.close(held)
                return None
            if time.monotonic() > until:
                os.close(held)
                raise ConfigurationError(
                    f"Another process writes to {folder}; wait until it ends, or choose another --output."
                ) from error
        time.sleep(0.1)


def let_go(held: int | None) -> None:
    if held is not None:
        os.close(held)
