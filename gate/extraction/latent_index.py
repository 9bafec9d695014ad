"""Which file of the latent cache holds which image, and what it says: files of many processes, damaged ones among them.

A file is safetensors: x0 (n, c, h, w) float32, keys (n, KEY) and checksums (n, KEY) as bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEY = 16  # bytes of a key, and of a latent's checksum
TOUCHED = 60.0  # seconds in which a file's time of use is told once


class Index:
    """Which file of a group holds which key: 16 bytes a latent, whatever number there is."""

    def __init__(self, group: Path) -> None:
        self.group = group
        self.files: list[Path] = []
        self.heads: NDArray[np.uint64] = np.zeros(0, np.uint64)  # the first half of each key, ascending
        self.places: NDArray[np.int64] = np.zeros(0, np.int64)  # its file by number, and its row in it
        self._read: set[str] = set()
        self._seen = -1
        self._touched: dict[Path, float] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the files that came since, also those of other processes."""
        try:
            changed = self.group.stat().st_mtime_ns
            names = sorted(n for n in os.listdir(self.group) if n.endswith(".safetensors"))
        except OSError:  # nothing is there yet
            return
        if changed == self._seen:
            return
        self._seen = changed
        heads, places = [self.heads], [self.places]
        for name in names:
            if name in self._read:
                continue
            self._read.add(name)
            keys = self._keys(self.group / name)
            heads.append(np.ascontiguousarray(keys[:, :8]).view(np.uint64)[:, 0])
            places.append((np.int64(len(self.files)) << 32) + np.arange(len(keys), dtype=np.int64))
            self.files.append(self.group / name)
        if len(heads) > 1:
            joined = np.concatenate(heads)
            order = np.argsort(joined, kind="stable")
            self.heads, self.places = joined[order], np.concatenate(places)[order]

    def find(self, keys: Sequence[bytes]) -> list[tuple[Path, int] | None]:
        """The file and row of each key, as far as half a key tells."""
        wanted = np.frombuffer(b"".join(key[:8] for key in keys), np.uint64)
        at = np.searchsorted(self.heads, wanted)
        found: list[tuple[Path, int] | None] = []
        for head, i in zip(wanted, at, strict=True):
            if i < len(self.heads) and self.heads[i] == head:
                place = int(self.places[i])
                found.append((self.files[place >> 32], place & 0xFFFFFFFF))
            else:
                found.append(None)
        return found

    def read(self, file: Path, wanted: Sequence[tuple[bytes, int]]) -> list[Tensor | None]:
        """The latents at these rows; None where the whole key is another, or the file is not what was written."""
        from safetensors import safe_open

        found: list[Tensor | None] = []
        try:
            with safe_open(file, framework="numpy") as opened:
                keys, sums, rows = (
                    opened.get_tensor("keys"),
                    opened.get_tensor("sums"),
                    opened.get_slice("x0"),
                )
                for key, row in wanted:
                    if keys[row].tobytes() != key:
                        found.append(None)
                        continue
                    value = rows[row : row + 1][0]
                    if value.dtype != np.float32 or checksum(key, value) != sums[row].tobytes():
                        raise ValueError("not what was written")
                    found.append(torch.from_numpy(np.array(value)))
        except Exception as error:  # safetensors raises its own kinds for a damaged file, and one may be gone
            kept = (self.places >> 32) != self.files.index(file)
            self.heads, self.places = self.heads[kept], self.places[kept]
            _delete_damaged(file, error)
            return [None] * len(wanted)
        self._touch(file)
        return found

    def _keys(self, file: Path) -> NDArray[np.uint8]:
        from safetensors import safe_open

        try:
            with safe_open(file, framework="numpy") as opened:
                keys: NDArray[np.uint8] = opened.get_tensor("keys")
            if keys.dtype != np.uint8 or keys.shape[1:] != (KEY,):
                raise ValueError("not what was written")
            return keys
        except Exception as error:  # as above
            _delete_damaged(file, error)
            return np.zeros((0, KEY), np.uint8)

    def _touch(self, file: Path) -> None:
        """Tell that a file was used: what was not goes first where room is made."""
        now = time.monotonic()
        if now - self._touched.get(file, -TOUCHED) >= TOUCHED:
            self._touched[file] = now
            with contextlib.suppress(OSError):
                os.utime(file)


def _delete_damaged(file: Path, error: Exception) -> None:
    """Its latents are encoded again and put into another file. A disk's trouble is no damage."""
    if not isinstance(error, (OSError, MemoryError)):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def checksum(key: bytes, value: NDArray[np.float32]) -> bytes:
    """Of one latent, under its key: KEY bytes."""
    digest = hashlib.blake2b(key, digest_size=KEY)
    digest.update(np.ascontiguousarray(value).data)
    return digest.digest()
