"""What writers that were killed leave: temporary files beside those that they meant to write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def leftovers(*folders: Path) -> Iterator[Path]:
    """Temporary files that killed writers left in these folders: of `one_move`, and safetensors' own beside them."""
    for folder in folders:
        yield from folder.glob("*.tmp")
        yield from folder.glob(".tmp*")
