"""SPair-71k: pairs of photographs of one category, with keypoints (Min et al. 2019, arXiv 1908.10543)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gate.data.pairs import ImagePair, PairSet
from gate.data.public.parts import drawn, need, opened
from gate.errors import ConfigurationError
from gate.sample import Sample, SampleSet

LAYOUT = "SPair-71k's layout: PairAnnotation/trn|val|test/NAME.json and JPEGImages/CATEGORY/NAME.jpg"
FIELDS = (
    "src_imname",
    "trg_imname",
    "src_imsize",
    "trg_imsize",
    "trg_bndbox",
    "category",
    "src_kps",
    "trg_kps",
)


def is_here(folder: Path) -> bool:
    """Whether a folder looks like SPair-71k."""
    return (folder / "PairAnnotation").is_dir()


def load(folder: Path, split: str, *, size: int, limit: int | None = None, seed: int = 0) -> PairSet:
    """The pairs of a split ("trn", "val" or "test"), or `limit` of them; each image once, however many pairs it is in.

    Images are resized to size x size whatever their shape, so that no keypoint is cut off; errors are measured in
    the original pixels. Raises ConfigurationError where a file is missing or malformed, and says which.
    """
    at = need(folder / "PairAnnotation" / split, LAYOUT, folder=True)
    need(folder / "JPEGImages", LAYOUT, folder=True)
    files = drawn(at.glob("*.json"), lambda file: file.name, limit, seed)
    if not files:
        raise ConfigurationError(f"{str(at)!r} holds no NAME.json; expected {LAYOUT}.")
    samples: list[Sample] = []
    rows: dict[str, int] = {}
    pairs, categories = [], []
    for file in files:
        said = _read(file)
        ends = []
        for side in ("src", "trg"):
            key = f"{said['category']}/{said[side + '_imname']}"
            if key not in rows:
                rows[key] = len(samples)
                samples.append(_sample(folder, key, said[f"{side}_imsize"], size))
            ends.append(rows[key])
        pairs.append(_pair(said, ends, size))
        categories.append(said["category"])
    classes = tuple(sorted(set(categories)))
    return PairSet(SampleSet(tuple(samples), f"spair-71k {split}", classes=classes), tuple(pairs))


def _read(file: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        missing = [field for field in FIELDS if field not in said]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"The annotation {str(file)!r} is no JSON object ({error}).") from error
    if missing:
        raise ConfigurationError(
            f"The annotation {str(file)!r} lacks {missing[0]!r}; expected {', '.join(FIELDS)}."
        )
    points = [np.asarray(said[f"{side}_kps"], dtype=np.float64) for side in ("src", "trg")]
    if points[0].shape != points[1].shape or points[0].ndim != 2 or points[0].shape[1:] != (2,):
        raise ConfigurationError(f"In {str(file)!r}, src_kps and trg_kps must be equally many (x, y).")
    if len(said["trg_bndbox"]) != 4:
        raise ConfigurationError(
            f"In {str(file)!r}, trg_bndbox must be four numbers: left, top, right, bottom."
        )
    return said


def _sample(folder: Path, key: str, imsize: Any, size: int) -> Sample:
    path = need(folder / "JPEGImages" / key, LAYOUT)
    image = opened(path)
    if list(image.size) != [int(v) for v in imsize[:2]]:
        raise ConfigurationError(
            f"{str(path)!r} is {image.width} x {image.height}, and its annotation says {imsize[0]} x {imsize[1]}."
        )
    return Sample(np.array(image.resize((size, size), Image.Resampling.LANCZOS)), source=key)


def _pair(said: dict[str, Any], ends: list[int], size: int) -> ImagePair:
    points = []
    for side in ("src", "trg"):
        scale = np.array([size / said[f"{side}_imsize"][0], size / said[f"{side}_imsize"][1]])
        points.append(((np.asarray(said[f"{side}_kps"], np.float64) + 0.5) * scale - 0.5).astype(np.float32))
    left, top, right, bottom = (float(v) for v in said["trg_bndbox"])
    width, height = (float(v) for v in said["trg_imsize"][:2])
    return ImagePair(
        ends[0],
        ends[1],
        points[0],
        points[1],
        image=max(width, height),
        box=max(right - left, bottom - top),
        scale=(width / size, height / size),
        group=str(said["category"]),
    )
