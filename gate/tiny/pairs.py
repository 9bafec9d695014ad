"""Two scenes of one object, and which points of it are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gate.tiny.backgrounds import pick_background
from gate.tiny.scenes import CLASSES, Array, Placement, Scene, Split, draw, owners, sprite_to_scene, sprites


@dataclass(frozen=True)
class ScenePair:
    """Two renderings of one object. points_a, points_b: (n, 2) float32, (x, y) in pixels, the same points of
    the object in each; pixel (row i, column j) has its centre at (j, i)."""

    image_a: Array
    image_b: Array
    points_a: Array
    points_b: Array
    mask_a: Array
    mask_b: Array
    placement_a: Placement
    placement_b: Placement
    caption: str
    label: int


def render_pair(
    seed: int,
    index: int,
    *,
    objects: Split = "held-out",
    size: int = 64,
    max_angle: float = 30.0,
    flip: bool = False,
) -> ScenePair:
    """Two renderings of one object under different scale, rotation, position and background.

    max_angle: degrees; flip: also mirror the object in half of the second renderings. Every visible pixel
    centre of rendering a whose point is visible in rendering b gives one correspondence."""
    rng = np.random.default_rng([seed, index, 2])
    pool = sprites(objects)
    sprite = pool[int(rng.integers(len(pool)))]
    pair = []
    for second in (False, True):
        scale = float(rng.uniform(0.5, 0.9))
        slack = (1 - scale) / 2
        x, y = (0.5 + rng.uniform(-slack, slack, 2)).tolist()
        angle = float(rng.uniform(-max_angle, max_angle))
        mirrored = bool(rng.random() < 0.5) and flip and second
        pair.append((Placement(sprite, x, y, scale, angle, mirrored), pick_background(rng)))
    (place_a, ground_a), (place_b, ground_b) = pair
    image_a, cover_a = draw((place_a,), ground_a, size)
    image_b, cover_b = draw((place_b,), ground_b, size)
    label = CLASSES.index(sprite.group)
    mask_a, mask_b = ((owners(c) * (label + 1)).astype(np.uint8) for c in (cover_a, cover_b))
    points_a, points_b = _correspond(place_a, place_b, mask_a > 0, mask_b > 0)
    caption = f"a photo of {sprite.phrase}"
    return ScenePair(image_a, image_b, points_a, points_b, mask_a, mask_b, place_a, place_b, caption, label)


@dataclass(frozen=True)
class ScenesPair:
    """Two scenes of a series that show one object. first, second: their places in the series. points_a, points_b:
    (m, 2) float32, (x, y) in pixels, the same points of the object in each. box: (4,) float32, x0, y0, x1, y1 of what
    shows of the object in the second, in pixels. sprite: its number on the sheet."""

    first: int
    second: int
    points_a: Array
    points_b: Array
    box: Array
    sprite: int


def pairs_within(
    scenes: Sequence[Scene], n: int, *, seed: int = 0, points: int = 16, least: int = 6
) -> list[ScenesPair]:
    """Up to n pairs of scenes that show the same object, drawn by `seed`, every object as often as can be.

    points: as many correspondences are drawn of a pair's; one with fewer than `least` of them is left out. A pair of
    scenes occurs once.
    """
    rng = np.random.default_rng([seed, len(scenes), 3])
    shown: dict[int, list[tuple[int, int]]] = {}
    for number, scene in enumerate(scenes):
        for k, placement in enumerate(scene.objects):
            shown.setdefault(placement.sprite.cell, []).append((number, k))
    waiting = {}
    for cell, places in sorted(shown.items()):
        every = [(a, b) for i, a in enumerate(places) for b in places[i + 1 :]]
        waiting[cell] = [every[i] for i in rng.permutation(len(every))]
    found: list[ScenesPair] = []
    used: set[tuple[int, int]] = set()
    while waiting and len(found) < n:
        for cell in list(waiting):
            pair = _next_pair(scenes, waiting[cell], used, rng, points, least) if len(found) < n else None
            if pair is None:
                del waiting[cell]
            else:
                found.append(pair)
    return found


def _next_pair(
    scenes: Sequence[Scene],
    waiting: list[tuple[tuple[int, int], tuple[int, int]]],
    used: set[tuple[int, int]],
    rng: np.random.Generator,
    points: int,
    least: int,
) -> ScenesPair | None:
    """The next of one object's that has enough points in common; None where there is none left."""
    while waiting:
        (first, i), (second, j) = waiting.pop()
        if (first, second) in used:
            continue
        a, b = scenes[first], scenes[second]
        seen = b.owner == j + 1
        points_a, points_b = _correspond(a.objects[i], b.objects[j], a.owner == i + 1, seen)
        if len(points_a) < least:
            continue
        used.add((first, second))
        chosen = np.sort(rng.permutation(len(points_a))[:points])
        rows, columns = np.nonzero(seen)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        return ScenesPair(first, second, points_a[chosen], points_b[chosen], box, a.objects[i].sprite.cell)
    return None


def _correspond(a: Placement, b: Placement, visible_a: Array, visible_b: Array) -> tuple[Array, Array]:
    """Points (n, 2) float32 of the object seen in both renderings."""
    size = visible_a.shape[0]
    rows, columns = np.nonzero(visible_a)
    points_a = np.column_stack([columns, rows]).astype(np.float64)
    map_a, map_b = sprite_to_scene(a, size), sprite_to_scene(b, size)
    own = (points_a - map_a[:, 2]) @ np.linalg.inv(map_a[:, :2]).T
    points_b = own @ map_b[:, :2].T + map_b[:, 2]
    nearest = np.rint(points_b).astype(int)
    inside = ((nearest >= 0) & (nearest < size)).all(axis=1)
    clipped = nearest.clip(0, size - 1)
    seen = inside & visible_b[clipped[:, 1], clipped[:, 0]]
    return points_a[seen].astype(np.float32), points_b[seen].astype(np.float32)
