"""Pairs of tiny scenes that show one object, with points that are the same in both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gate.data.images import check_size
from gate.data.styles import Style, as_they_are
from gate.errors import UsageError
from gate.sample import Sample, SampleSet
from gate.tiny.pairs import ScenePair, render_pair
from gate.tiny.scenes import CLASSES, Split

FIRST_INDEX = 20_000_000  # apart from the scenes that models learn from, and from those that are screened
POINTS = 20  # keypoints of a pair at most: SPair-71k has 3 to 30


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two samples of a set by number, and the same m points in each, (m, 2) float32 (x, y) in pixels.

    image, box: the longer sides of the target and of its object's bounding box, in the pixels of its file. scale: of
    its file's pixels per pixel as loaded, in x and y. group: the category.
    """

    source: int
    target: int
    source_points: np.typing.NDArray[np.float32]
    target_points: np.typing.NDArray[np.float32]
    image: float
    box: float
    scale: tuple[float, float] = (1.0, 1.0)
    group: str = ""


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs over the samples of a set."""

    samples: SampleSet
    pairs: tuple[ImagePair, ...]


def load_pairs(
    *, n: int, size: int, seed: int = 0, objects: Split = "held-out", style: Style = as_they_are
) -> PairSet:
    """`n` pairs of scenes of one object each, at two places, sizes and angles (within 30 degrees of upright) on two
    backgrounds; the first of more where n is smaller. style: how both are drawn.

    Keypoints are up to POINTS of the object's pixels that both show, drawn by (seed, number of the pair).
    """
    check_size(size)
    if n < 1:
        raise UsageError(f"The number of pairs must be at least 1, not {n}.")
    samples: list[Sample] = []
    pairs: list[ImagePair] = []
    index = FIRST_INDEX
    while len(pairs) < n:
        pair = render_pair(seed, index, objects=objects, size=size)
        index += 1
        if len(pair.points_a) == 0:
            continue
        pairs.append(_pair(pair, 2 * len(pairs), seed, index, size))
        for which, image, mask in (("a", pair.image_a, pair.mask_a), ("b", pair.image_b, pair.mask_b)):
            drawn, caption = style(image, pair.caption, 2 * index + (which == "b"))
            named = f"tiny-pair-{seed}-{index}-{which}"
            samples.append(
                Sample(drawn, caption=caption, label=pair.label, mask=mask.astype(np.int16), source=named)
            )
    return PairSet(
        SampleSet(tuple(samples), "tiny-pairs", classes=CLASSES, mask_classes=("background", *CLASSES)),
        tuple(pairs),
    )


def _pair(pair: ScenePair, first: int, seed: int, index: int, size: int) -> ImagePair:
    rng = np.random.default_rng([seed, index, 3])
    chosen = np.sort(rng.permutation(len(pair.points_a))[:POINTS])
    rows, columns = np.nonzero(pair.mask_b)
    box = max(rows.max() - rows.min(), columns.max() - columns.min()) + 1
    return ImagePair(
        first,
        first + 1,
        pair.points_a[chosen],
        pair.points_b[chosen],
        float(size),
        float(box),
        group=CLASSES[pair.label],
    )
