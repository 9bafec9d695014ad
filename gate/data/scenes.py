"""The tiny scenes as samples, with everything they know about themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np

from gate.data.images import check_size
from gate.data.order import interleave
from gate.data.styles import Style, as_they_are
from gate.errors import UsageError
from gate.sample import Sample, SampleSet
from gate.tiny.scenes import CLASSES, Scene, Split, render, sprites

FIRST_INDEX = (
    10_000_000  # training renders from 0 on: no scene of ours was ever trained on, whatever the seed
)


def load_scenes(
    *, n: int, size: int, seed: int = 0, objects: Split = "held-out", style: Style = as_they_are
) -> SampleSet:
    """`n` scenes of size x size pixels with caption, label and mask, the labels as even as n allows.

    objects: "held-out" (art that the tiny backbone never saw), "trained" or "all". style: how they are drawn. Fewer
    scenes are the first of more.
    """
    check_size(size)
    if n < 1:
        raise UsageError(f"The number of scenes must be at least 1, not {n}.")
    if objects not in ("held-out", "trained", "all"):
        raise UsageError(f"objects must be 'held-out', 'trained' or 'all', not {objects!r}.")
    present = sorted({CLASSES.index(s.group) for s in sprites(objects)})
    index = FIRST_INDEX
    waiting: dict[int, deque[Scene]] = {label: deque() for label in present}

    def of_class(label: int) -> Iterator[Scene]:
        nonlocal index
        while True:
            while not waiting[label]:
                scene = render(seed, index, objects=objects, size=size)
                waiting[scene.label].append(scene)
                index += 1
            yield waiting[label].popleft()

    chosen = islice(interleave({CLASSES[label]: of_class(label) for label in present}, seed), n)
    return SampleSet(
        tuple(_sample(scene, style) for scene in chosen),
        name="tiny-scenes" if style is as_they_are else f"tiny-scenes, {style.__name__.replace('_', ' ')}",
        classes=CLASSES,
        mask_classes=("background", *CLASSES),
    )


def _sample(scene: Scene, style: Style) -> Sample:
    image, caption = style(scene.image, scene.caption, scene.index)
    return Sample(
        image,
        caption=caption,
        label=scene.label,
        mask=scene.mask.astype(np.int16),
        source=scene.sample_id,
    )
