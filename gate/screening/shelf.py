"""Rows of tensors that outgrow memory: kept where they are while few, in an unnamed scratch file when many."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gate.errors import FULL
from gate.machine import release

IN_MEMORY = 128 << 20  # bytes of one shelf; a larger one goes to the disk


class NoRoomError(OSError):
    """The disk that shelves lie on is full; no technique's fault."""


class Shelf:
    """n rows of one shape and dtype, written and read by slices.

    In memory, on the device of what is written first, up to `limit` bytes; else in a file of `folder` that has no name
    any more, so that it ends with the process, however that ends. Pages that were read or written are given back, so
    the memory in use does not grow with n. held: the rows, where they are in memory.
    """

    def __init__(self, n: int, *, folder: Path | None = None, limit: int = IN_MEMORY) -> None:
        self.n, self.folder, self.limit = n, folder, limit
        self.held: Tensor | None = None
        self._file: Any = None
        self._like: Tensor | None = None

    def put(self, rows: slice, values: Tensor) -> None:
        """values: (rows, ...); the first call settles shape and dtype."""
        if self._like is None:
            self._open(values)
        if self.held is not None:
            self.held[rows] = values
            return
        self._file[rows] = values.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
        release(self._file)

    def get(self, rows: slice) -> Tensor:
        """The rows, (rows, ...), on the device where they were written; not to be written to."""
        if self.held is not None:
            return self.held[rows]
        assert self._like is not None, "nothing is on this shelf yet"
        data = torch.from_numpy(np.array(self._file[rows])).view(self._like.dtype)
        release(self._file)
        return data.reshape(-1, *self._like.shape[1:]).to(self._like.device)

    def array(self) -> NDArray[Any]:
        """All rows, (n, ...), on the CPU; mapped from the file where there is one (see `gate.probe.chunks`)."""
        if self.held is not None:
            return self.held.cpu().numpy()
        assert self._like is not None, "nothing is on this shelf yet"
        dtype = self._like[:0].cpu().numpy().dtype
        found: NDArray[Any] = self._file.view(dtype).reshape(self.n, *self._like.shape[1:])
        return found

    def _open(self, values: Tensor) -> None:
        self._like = values[:0]
        size = math.prod(values.shape[1:]) * values.element_size()
        if self.n * size <= self.limit:
            self.held = torch.empty((self.n, *values.shape[1:]), dtype=values.dtype, device=values.device)
            return
        with tempfile.TemporaryFile(dir=self.folder) as file:
            _reserve(file.fileno(), self.n * size)
            self._file = np.memmap(file, dtype=np.uint8, mode="w+", shape=(self.n, size))


def _reserve(file: int, size: int) -> None:
    """Room on the disk, where the system can promise it: without it, who writes to the mapped file is killed."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno in FULL:
                raise NoRoomError(error.errno, error.strerror) from error
