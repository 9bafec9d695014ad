"""Synthetic scenes of 3D emoji art that know their own truth: caption, class, per-pixel class,
correspondences.

A scene is a pure function of (seed, index): one to three objects on a quiet background. Needs numpy and
Pillow only.

Scenes are 64x64 and the tiny VAE reduces by 4: a 16x16 latent, the largest that a denoiser of SD's topology
can be trained and screened on with two CPU cores; 128 px with f = 8 has the same latent and a VAE four times
as dear."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from gate.tiny.backgrounds import Background, draw_background, pick_background

ASSETS = Path(__file__).parent / "assets"
SUPERSAMPLING = 2  # scenes are drawn at twice their size and box-filtered, so shrunk art does not alias
OPAQUE = 0.5  # a pixel belongs to an object where its coverage is above this

Split = Literal["trained", "held-out", "all"]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SpriteInfo:
    """One object of the sheet. `phrase` is the name with its article, `cell` its number on the sheet."""

    name: str
    phrase: str
    group: str
    codepoint: str
    held_out: bool
    cell: int


@dataclass(frozen=True)
class Placement:
    """An object in a scene. x, y: centre in [0, 1] of the side; scale: share of the side that its longer
    extent takes; angle: degrees counter-clockwise; flip: mirrored left to right before the rotation."""

    sprite: SpriteInfo
    x: float
    y: float
    scale: float
    angle: float
    flip: bool = False


@dataclass(frozen=True)
class Scene:
    """image: (h, w, 3) uint8; mask: (h, w) uint8, 0 = background, k = CLASSES[k - 1]; label: index into
    CLASSES of the largest visible object (0-based, so its mask value is label + 1); objects: back to
    front; owner: (h, w) int64, 0 = background, k = objects[k - 1]; largest: the index of the object that shows most."""

    image: Array
    caption: str
    label: int
    mask: Array
    objects: tuple[Placement, ...]
    background: Background
    seed: int
    index: int
    owner: Array
    largest: int

    @property
    def class_name(self) -> str:
        """Name of the class that `label` stands for."""
        return CLASSES[self.label]

    @property
    def sample_id(self) -> str:
        """Readable identity: the scene is a function of it (and of the choice of objects and size)."""
        return f"tiny-{self.seed}-{self.index}"


@functools.cache
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((ASSETS / "sprites.json").read_text(encoding="utf-8"))
    return facts


@functools.cache
def _sheet() -> Image.Image:
    with Image.open(ASSETS / "sprites.png") as sheet:
        return sheet.convert("RGBa")  # premultiplied, so that resampling leaves no dark fringe


CLASSES: tuple[str, ...] = tuple(_facts()["classes"])


@functools.cache
def sprites(objects: Split = "all") -> tuple[SpriteInfo, ...]:
    """The objects of one side of the split, in sheet order."""
    if objects not in ("trained", "held-out", "all"):
        raise ValueError(f"objects must be 'trained', 'held-out' or 'all', not {objects!r}")
    every = (SpriteInfo(cell=cell, **row) for cell, row in enumerate(_facts()["objects"]))
    return tuple(s for s in every if objects == "all" or s.held_out == (objects == "held-out"))


def class_prompts() -> tuple[str, ...]:
    """One prompt per class, in the order of CLASSES, in the words of the training captions."""
    return tuple(f"a photo of {_article(name)}" for name in CLASSES)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def render(
    seed: int,
    index: int,
    *,
    objects: Split = "trained",
    size: int = 64,
    count: int | None = None,
    groups: tuple[str, ...] = (),
) -> Scene:
    """The scene number `index` of the series `seed`.

    objects: which side of the split to draw from. count: number of objects, 1 to 3; None draws it (1: half of
    the scenes, 2: 30 %, 3: 20 %). size: side in pixels, the same scene at every size. groups: of these classes alone,
    () for all."""
    rng = np.random.default_rng([seed, index])
    drawn = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    pool = tuple(s for s in sprites(objects) if not groups or s.group in groups)
    placements = _place(rng, pool, count or drawn)
    background = pick_background(rng)
    image, coverage = draw(placements, background, size)
    owner = owners(coverage)
    values = np.array([0] + [CLASSES.index(p.sprite.group) + 1 for p in placements], dtype=np.uint8)
    areas = [int((owner == k + 1).sum()) for k in range(len(placements))]
    largest = int(np.argmax(areas))
    label = CLASSES.index(placements[largest].sprite.group)
    caption = write_caption(placements, background, rng)
    return Scene(image, caption, label, values[owner], placements, background, seed, index, owner, largest)


def render_of(sprite: SpriteInfo, seed: int, index: int, *, size: int = 64) -> Scene:
    """A scene of one given object, placed as `render` places a single object."""
    rng = np.random.default_rng([seed, index, sprite.cell])
    placements = _place(rng, (sprite,), 1)
    background = pick_background(rng)
    image, coverage = draw(placements, background, size)
    label, owner = CLASSES.index(sprite.group), owners(coverage)
    mask = (owner * (label + 1)).astype(np.uint8)
    caption = write_caption(placements, background, rng)
    return Scene(image, caption, label, mask, placements, background, seed, index, owner, 0)


def sprite_to_scene(placement: Placement, size: int) -> Array:
    """The affine map (2, 3) from the object's own square [-1, 1]^2 to pixel centres of a scene of `size`.

    The y axis points down; angle counts counter-clockwise as seen. Pixel (i, j) has its centre at (j, i).
    """
    half = placement.scale * size / 2
    radians = np.deg2rad(placement.angle)
    cos, sin = np.cos(radians), np.sin(radians)
    mirror = -1.0 if placement.flip else 1.0
    linear = half * np.array([[cos * mirror, sin], [-sin * mirror, cos]])
    centre = np.array([placement.x, placement.y]) * size - 0.5
    return np.column_stack([linear, centre])


def write_caption(
    placements: tuple[Placement, ...],
    background: Background,
    rng: np.random.Generator,
    *,
    class_only: float = 0.0,
) -> str:
    """A caption that names every object, sometimes with its class and sometimes with the background.

    A held-out object always comes with its class, because its own name was never trained. class_only:
    probability of a caption of classes alone ("a photo of a bird"); training uses some, so that
    `class_prompts` mean something."""
    only = rng.random() < class_only
    phrases = []
    for number, placement in enumerate(sorted(placements, key=lambda p: -p.scale)):
        sprite = placement.sprite
        with_class = sprite.held_out or (number == 0 and rng.random() < 0.3)
        group = _article(sprite.group)
        phrases.append(group if only else f"{group}, {sprite.phrase}" if with_class else sprite.phrase)
    named = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    caption = f"a photo of {named}" if rng.random() < 0.7 else named
    return f"{caption} on {background.phrase}" if rng.random() < 0.4 else caption


def _place(rng: np.random.Generator, pool: tuple[SpriteInfo, ...], count: int) -> tuple[Placement, ...]:
    """`count` different objects whose circles overlap by at most a fifth, largest first (so drawn at the
    back)."""
    low, high = {1: (0.6, 0.95), 2: (0.42, 0.6), 3: (0.36, 0.48)}[count]
    chosen = rng.choice(len(pool), size=count, replace=False)
    scales = sorted(rng.uniform(low, high, count).tolist(), reverse=True)
    for _ in range(200):
        slack = [(1 - scale) / 2 for scale in scales]
        centres = [0.5 + rng.uniform(-s, s, 2) for s in slack]
        gaps = [
            np.linalg.norm(centres[i] - centres[j]) - 0.4 * (scales[i] + scales[j])
            for i in range(count)
            for j in range(i)
        ]
        if all(gap >= 0 for gap in gaps):
            break
    angles = rng.uniform(-20, 20, count).tolist()
    return tuple(
        Placement(pool[int(number)], float(c[0]), float(c[1]), scale, angle)
        for number, c, scale, angle in zip(chosen, centres, scales, angles, strict=True)
    )


def draw(placements: tuple[Placement, ...], background: Background, size: int) -> tuple[Array, Array]:
    """image (size, size, 3) uint8 and the coverage of each object (n, size, size) float32 in [0, 1]."""
    canvas: Array = draw_background(background, size).astype(np.float32)
    coverage = np.zeros((len(placements), size, size), np.float32)
    for number, placement in enumerate(placements):
        layer = _warp(placement, size)
        alpha = layer[..., 3:] / 255
        canvas = canvas * (1 - alpha) + layer[..., :3]
        coverage[:number] *= 1 - alpha[..., 0]
        coverage[number] = alpha[..., 0]
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), coverage


def _warp(placement: Placement, size: int) -> Array:
    """One object alone: (size, size, 4) float32 in [0, 255], premultiplied."""
    cell = int(_facts()["cell"])
    row, column = divmod(placement.sprite.cell, int(_facts()["columns"]))
    art = _sheet().crop((column * cell, row * cell, (column + 1) * cell, (row + 1) * cell))
    big = size * SUPERSAMPLING
    # PIL wants output pixel -> input pixel, both at corner-based coordinates
    forward = sprite_to_scene(placement, size)
    forward[:, 2] += 0.5
    forward *= SUPERSAMPLING
    inverse = np.linalg.inv(forward[:, :2])
    matrix = np.column_stack([inverse, -inverse @ forward[:, 2]]) * (cell / 2)
    matrix[:, 2] += cell / 2
    channels = [
        band.transform((big, big), Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BILINEAR)
        for band in art.split()
    ]
    layer = np.stack([np.asarray(band, dtype=np.float32) for band in channels], axis=-1)
    return layer.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, 4).mean(axis=(1, 3))


def owners(coverage: Array) -> Array:
    """Which object a pixel shows: (h, w) int64, 0 = background, k = object k - 1."""
    best = coverage.argmax(axis=0)
    return np.where(coverage.max(axis=0) > OPAQUE, best + 1, 0)
