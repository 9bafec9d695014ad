"""The tiny scenes as samples, with everything they know about themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from gate.data.images import check_size
from gate.data.order import interleave
from gate.data.styles import Style, as_they_are, clutter
from gate.errors import UsageError
from gate.sample import Sample, SampleSet
from gate.tiny.scenes import CLASSES, Scene, Split, SpriteInfo, render, sprites

FIRST_INDEX = (
    10_000_000  # training renders from 0 on: no scene of ours was ever trained on, whatever the seed
)


COUNT_WORDS = {1: "", 2: " of two", 3: " of three"}


def unnamed(scene: Scene) -> str:
    """A caption that tells how many objects there are and where, and nothing of what they are."""
    return f"a photo{COUNT_WORDS[len(scene.objects)]} on {scene.background.phrase}"


def load_scenes(
    *,
    n: int,
    size: int,
    seed: int = 0,
    objects: Split = "held-out",
    style: Style = as_they_are,
    groups: Sequence[str] = (),
    count: int | None = None,
    cluttered: bool = False,
    by_object: bool = False,
    caption: Callable[[Scene], str] | None = None,
) -> SampleSet:
    """`n` scenes of size x size pixels with caption, label and mask, the labels as even as n allows.

    objects: "held-out" (art that the tiny backbone never saw), "trained" or "all". style: how they are drawn. groups:
    of these classes alone, which are then all the classes there are; () takes every class. count: objects in each
    scene; None draws it. cluttered: whether the background is full of shapes that belong to no class. by_object: every
    object is a class of its own. caption: what is said of a scene; None takes its own caption. Fewer scenes are the
    first of more.
    """
    check_size(size)
    if n < 1:
        raise UsageError(f"The number of scenes must be at least 1, not {n}.")
    if objects not in ("held-out", "trained", "all"):
        raise UsageError(f"objects must be 'held-out', 'trained' or 'all', not {objects!r}.")
    kinds = _Kinds(objects, tuple(groups), by_object)
    chosen = draw_scenes(
        n=n, size=size, seed=seed, objects=objects, groups=groups, count=count, by_object=by_object
    )
    return SampleSet(
        tuple(_sample(scene, style, kinds, cluttered, caption) for scene in chosen),
        name="tiny-scenes" if style is as_they_are else f"tiny-scenes, {style.__name__.replace('_', ' ')}",
        classes=kinds.names,
        mask_classes=("background", *kinds.names),
    )


def draw_scenes(
    *,
    n: int,
    size: int,
    seed: int = 0,
    objects: Split = "held-out",
    groups: Sequence[str] = (),
    count: int | None = None,
    by_object: bool = False,
) -> list[Scene]:
    """The scenes behind `load_scenes`, in its order: they know which object lies where."""
    kinds = _Kinds(objects, tuple(groups), by_object)
    index = FIRST_INDEX
    waiting: dict[int, deque[Scene]] = {label: deque() for label in kinds.present}

    def of_class(label: int) -> Iterator[Scene]:
        nonlocal index
        while True:
            while not waiting[label]:
                scene = render(seed, index, objects=objects, size=size, count=count, groups=kinds.groups)
                waiting[kinds.label(scene)].append(scene)
                index += 1
            yield waiting[label].popleft()

    return list(islice(interleave({kinds.names[label]: of_class(label) for label in kinds.present}, seed), n))


class _Kinds:
    """What counts as a class. names: of the classes; present: their numbers, those that scenes can show."""

    def __init__(self, objects: Split, groups: tuple[str, ...], by_object: bool) -> None:
        unknown = [g for g in groups if g not in CLASSES]
        if unknown:
            raise UsageError(f"There is no class {unknown[0]!r}; the classes are {', '.join(CLASSES)}.")
        self.groups, self.by_object = groups, by_object
        shown = [s for s in sprites(objects) if not groups or s.group in groups]
        self.names = tuple(s.name for s in shown) if by_object else groups or CLASSES
        self.present = [
            k for k, name in enumerate(self.names) if by_object or name in {s.group for s in shown}
        ]

    def of(self, sprite: SpriteInfo) -> int:
        return self.names.index(sprite.name if self.by_object else sprite.group)

    def label(self, scene: Scene) -> int:
        """Class of the largest visible object."""
        return self.of(scene.objects[scene.largest].sprite)

    def mask(self, scene: Scene) -> npt.NDArray[np.int16]:
        values = np.array([0, *(self.of(p.sprite) + 1 for p in scene.objects)], dtype=np.int16)
        return values[scene.owner]


def _sample(
    scene: Scene,
    style: Style,
    kinds: _Kinds,
    cluttered: bool,
    caption: Callable[[Scene], str] | None,
) -> Sample:
    drawn = clutter(scene.image, scene.owner == 0, scene.index) if cluttered else scene.image
    image, said = style(drawn, caption(scene) if caption else scene.caption, scene.index)
    return Sample(
        image, caption=said, label=kinds.label(scene), mask=kinds.mask(scene), source=scene.sample_id
    )
