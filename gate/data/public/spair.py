"""SPair-71k: pairs of photographs of one category, with keypoints (Min et al. 2019, arXiv 1908.10543)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gate.data.pairs import ImagePair, PairSet
from gate.data.public.parts import drawn, need, opened
from gate.errors import ConfigurationError
from gate.sample import Sample, SampleSet

LAYOUT = "SPair-71k's layout: PairAnnotation/trn|val|test/NAME.json and JPEGImages/CATEGORY/NAME.jpg"
Point = tuple[float, float]


class Annotation(BaseModel):
    """What is read of a pair's file. Sizes are (width, height, ...), points (x, y), a box left, top, right, bottom."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    src_imname: str
    trg_imname: str
    src_imsize: tuple[int, ...] = Field(min_length=2)
    trg_imsize: tuple[int, ...] = Field(min_length=2)
    trg_bndbox: tuple[float, float, float, float]
    category: str
    src_kps: tuple[Point, ...] = Field(min_length=1)
    trg_kps: tuple[Point, ...] = Field(min_length=1)

    @property
    def box(self) -> float:
        """The longer side of the target's box."""
        left, top, right, bottom = self.trg_bndbox
        return max(right - left, bottom - top)


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
            source = side == "src"
            key = f"{said.category}/{said.src_imname if source else said.trg_imname}"
            if key not in rows:
                rows[key] = len(samples)
                samples.append(_sample(folder, key, said.src_imsize if source else said.trg_imsize, size))
            ends.append(rows[key])
        pairs.append(_pair(said, ends, size))
        categories.append(said.category)
    classes = tuple(sorted(set(categories)))
    return PairSet(SampleSet(tuple(samples), f"spair-71k {split}", classes=classes), tuple(pairs))


def _read(file: Path) -> Annotation:
    try:
        said = Annotation.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ConfigurationError(_wrong(file, error)) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The annotation {str(file)!r} is no JSON object ({error}).") from error
    if len(said.src_kps) != len(said.trg_kps):
        raise ConfigurationError(f"In {str(file)!r}, src_kps and trg_kps must be equally many (x, y).")
    if said.box <= 0:
        raise ConfigurationError(
            f"In {str(file)!r}, trg_bndbox must be four numbers: left, top, right, bottom."
        )
    return said


def _wrong(file: Path, error: ValidationError) -> str:
    """The first thing that is, in a sentence."""
    first = error.errors()[0]
    if not first["loc"]:
        return f"The annotation {str(file)!r} is no JSON object."
    field, *place = (str(part) for part in first["loc"])
    if first["type"] == "missing" and not place:
        return f"The annotation {str(file)!r} lacks {field!r}; expected {', '.join(Annotation.model_fields)}."
    return f"In {str(file)!r}, {'.'.join((field, *place))} is wrong: {str(first['msg']).lower()}."


def _sample(folder: Path, key: str, imsize: tuple[int, ...], size: int) -> Sample:
    path = need(folder / "JPEGImages" / key, LAYOUT)
    image = opened(path)
    if image.size != imsize[:2]:
        raise ConfigurationError(
            f"{str(path)!r} is {image.width} x {image.height}, and its annotation says {imsize[0]} x {imsize[1]}."
        )
    return Sample(np.array(image.resize((size, size), Image.Resampling.LANCZOS)), source=key)


def _pair(said: Annotation, ends: list[int], size: int) -> ImagePair:
    points = []
    for imsize, kps in ((said.src_imsize, said.src_kps), (said.trg_imsize, said.trg_kps)):
        scale = np.array([size / imsize[0], size / imsize[1]])
        points.append(((np.asarray(kps, np.float64) + 0.5) * scale - 0.5).astype(np.float32))
    width, height = (float(v) for v in said.trg_imsize[:2])
    return ImagePair(
        ends[0],
        ends[1],
        points[0],
        points[1],
        image=max(width, height),
        box=said.box,
        scale=(width / size, height / size),
        group=said.category,
    )
