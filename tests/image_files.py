"""Folders of small pictures for tests, and how their messages must read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate.errors import GateError
from gate.sample import Sample, SampleSet

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(number: int, width: int = 20, height: int = 16) -> Image.Image:
    """A noise picture that only `number` has."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(folder: Path, count: int = 10, *, start: int = 0, suffix: str = ".png") -> list[Path]:
    """`count` pictures img00.png, img01.png, ... in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"img{number:02d}{suffix}" for number in range(start, start + count)]
    for number, path in enumerate(paths, start):
        picture(number + 1000 * len(folder.parts)).save(path)
    return paths


def by_source(samples: SampleSet) -> dict[str, Sample]:
    return {s.source: s for s in samples}


def sentence(error: pytest.ExceptionInfo[GateError]) -> str:
    """The message, after checking that it is one line for a person."""
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", ")", "?"))
    return text
