"""The folder of the latent cache: where it is, what lies in it, what is thrown out. Imports no torch.

`FOLDER/GROUP/COUNT-UNIQUE.safetensors`: a group is all that is encoded alike (`gate.extraction.latents`) and says what
that is in `about.json`; a file is named by how many latents it holds, and its time is when it was used last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

ABOUT, ENV = "about.json", "GATE_CACHE"
LIMIT = 16 << 30  # bytes: 250,000 latents of Stable Diffusion at 512 px
SPARED = 0.9  # of the limit: what stays, so that not every file that comes throws one out
ABANDONED = 3600.0  # seconds after which a half-written file is nobody's any more
_SHARD = re.compile(r"(\d+)-[0-9a-f]+\.safetensors")
_GROUP = re.compile(r"[0-9a-f]{32}")


def default_folder() -> Path:
    """`latents` in the user's cache directory, or in the directory that GATE_CACHE names."""
    chosen = os.environ.get(ENV)
    root = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("gate", appauthor=False)
    return root / "latents"


@dataclass(frozen=True)
class Group:
    """Latents that are encoded alike. about: what they have in common; used: seconds since 1970."""

    name: str
    about: dict[str, str] = field(default_factory=dict)
    latents: int = 0
    bytes: int = 0
    used: float = 0.0


@dataclass(frozen=True)
class _File:
    path: Path
    bytes: int
    used: float

    @property
    def latents(self) -> int:
        shard = _SHARD.fullmatch(self.path.name)
        return int(shard[1]) if shard else 0


def groups(folder: Path) -> list[Group]:
    """What the cache holds, the latest used first; nothing where there is no cache yet."""
    found = [_group(path) for path in _group_folders(folder)]
    return sorted(found, key=lambda group: -group.used)


def clear(folder: Path, *, dry_run: bool = False) -> list[Group]:
    """Delete what gate wrote into the cache, and nothing else. Returns what that was. Raises OSError."""
    gone = []
    for path in _group_folders(folder):
        gone.append(_group(path))
        if dry_run:
            continue
        for file in (*(f.path for f in _files(path)), path / ABOUT):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies there
            path.rmdir()
    return gone


def make_room(folder: Path, limit: int) -> int:
    """Delete the files that were not used for longest until the rest takes at most nine tenths of `limit` bytes; none
    where it is within the limit. Returns how many bytes are left. Another process may do the same at the same time."""
    files = sorted((f for g in _group_folders(folder) for f in _files(g)), key=lambda f: f.used)
    total = sum(f.bytes for f in files)
    over = total > limit
    for file in files:
        abandoned = not file.latents and time.time() - file.used > ABANDONED
        if abandoned or (over and total > SPARED * limit):
            with contextlib.suppress(OSError):  # gone already, or held open where that keeps a file
                file.path.unlink()
            total -= file.bytes
    return total


def _group_folders(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _GROUP.fullmatch(entry.name) and entry.is_dir():
                yield Path(entry.path)


def _files(group: Path) -> Iterator[_File]:
    """Finished files and half-written ones."""
    with contextlib.suppress(OSError), os.scandir(group) as entries:
        for entry in entries:
            if _SHARD.fullmatch(entry.name.removesuffix(".tmp")):
                with contextlib.suppress(OSError):
                    facts = entry.stat()
                    yield _File(Path(entry.path), facts.st_size, facts.st_mtime)


def _group(path: Path) -> Group:
    about: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        read = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        about = {str(k): str(v) for k, v in read.items()} if isinstance(read, dict) else {}
    files = list(_files(path))
    return Group(
        path.name,
        about,
        sum(f.latents for f in files),
        sum(f.bytes for f in files),
        max((f.used for f in files), default=0.0),
    )
