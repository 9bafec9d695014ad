"""Measured figures as files: JSON for docs/performance.md, a table beside it for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def write_json(found: Mapping[str, Any], folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return file


def read_all(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Every file, by name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
