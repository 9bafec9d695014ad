"""The checkout's own `benchmarks`: scripts, which no wheel holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: `gate` itself comes from where it is installed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rates are measured for a moment: nobody looks at them. One thread, as small tensors want it."""
    import torch

    from benchmarks import device

    monkeypatch.setattr(device, "SECONDS", 1e-4)
    monkeypatch.setattr(device, "SQUARE", (64, 64, 64))
    monkeypatch.setattr(device, "MEGABYTES", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
