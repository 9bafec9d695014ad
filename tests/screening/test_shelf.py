"""Rows that outgrow memory come back with the same bits, and a tally whose maps lie in files gives the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gate.machine import release
from gate.probe import chunks
from gate.screening.shelf import Shelf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["file", "memory"])
def test_what_is_put_comes_back(tmp_path: Path, dtype: torch.dtype, limit: int) -> None:
    rows = (torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    shelf = Shelf(7, folder=tmp_path, limit=limit)
    for part in (slice(4, 7), slice(0, 4)):
        shelf.put(part, rows[part])
    assert torch.equal(shelf.get(slice(2, 6)), rows[2:6]) and shelf.get(slice(0, 7)).dtype == dtype
    shelf.put(slice(1, 2), rows[:1])
    assert torch.equal(shelf.get(slice(1, 2)), rows[:1])


def test_a_file_has_no_name_and_is_read_in_slices(tmp_path: Path) -> None:
    rows = torch.arange(130 * 4, dtype=torch.float32).reshape(130, 1, 2, 2)
    shelf = Shelf(130, folder=tmp_path, limit=0)
    shelf.put(slice(0, 130), rows)
    assert list(tmp_path.iterdir()) == []  # it ends with the process, however that ends
    mapped = shelf.array()
    release(mapped)  # pages are given back, and what they hold stays
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped, rows.numpy())
    parts = list(chunks(mapped))
    assert [r.stop - r.start for r, _ in parts] == [64, 64, 2]
    assert np.array_equal(np.concatenate([part for _, part in parts]), rows.numpy())
