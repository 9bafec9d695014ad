"""What a task is: a head trained in full on features, and judged on samples that it did not see.

`train` and `judge` are pure: features and truth in, a head or counts out, nothing read and nothing kept. Whoever has
features (a study, `gate task`) calls them directly.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gate.errors import ConfigurationError, NonFiniteError, UsageError
from gate.measure import Measure

if TYPE_CHECKING:
    from torch import nn

    from gate.tasks.stem import Features, Stem

Needs = Literal["masks", "labels", "pairs"]
Array = npt.NDArray[Any]
Tick = Callable[[int, int], None]  # steps done, of how many


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images, rows of the features, and points that are the same in both.

    points: (m, 2) float32, (x, y) in pixels of the images as they were extracted; pixel (row i, column j) has its
    centre at (j, i). scale: (2,), original pixels of the target per pixel, in x and y. image, box: the longer sides of
    the target and of the object's bounding box in it, in original pixels. group: the category.
    """

    source: int
    target: int
    source_points: Array
    target_points: Array
    image: float
    box: float
    scale: tuple[float, float] = (1.0, 1.0)
    group: str = ""


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known about n images, and nothing of the images themselves.

    ids: keys of all randomness, so that the order of samples changes nothing. size: pixels a side. labels: (n,) int64,
    indices into classes. masks: (n, size, size), indices into mask_classes, -1 where nothing is known. pairs: of rows.
    """

    ids: tuple[str, ...]
    size: int
    classes: tuple[str, ...] = ()
    labels: Array | None = None
    mask_classes: tuple[str, ...] = ()
    masks: Array | None = None
    pairs: tuple[Pair, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, chosen: Array) -> Truth:
        """The same about some images, in that order; pairs belong to all images and are dropped."""
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
            masks=None if self.masks is None else self.masks[chosen],
            pairs=(),
        )


@dataclass(frozen=True)
class Task(abc.ABC):
    """A subclass states its facts, has its settings as fields with defaults, and writes `train` and `judge`.

    name: what the command line calls it. summary: one line. source: paper. needs: the truth that it reads. measures:
    what its counts are read with, the primary figure first. cost: what training takes on `tiny`, in words.
    sizes: samples to train on and to judge of a named data set, unless told. resplits: whether a seed draws its own
    training images (`taught`) from all there are, and the others are judged.

    epochs, batch: times that training sees every sample, samples a step. rate, decay: AdamW's, the rate falls to 0 by a
    cosine. stem: how features enter a head; None joins their layers (`gate.tasks.stem.Joined`), else what it returns
    for the training features and a seed (an amalgamation, say).
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[Needs] = "masks"
    measures: ClassVar[tuple[Measure, ...]] = ()
    cost: ClassVar[str] = ""
    sizes: ClassVar[tuple[int, int]] = (800, 400)
    resplits: ClassVar[bool] = False

    epochs: int = 8
    batch: int = 32
    rate: float = 3e-3
    decay: float = 1e-2
    stem: Callable[[Features, int], Stem] | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        for setting in ("epochs", "batch"):
            if getattr(self, setting) < 1:
                raise UsageError(
                    f"Setting {setting!r} of {self.name} is 1 or more, not {getattr(self, setting)}."
                )
        if not self.rate > 0 or not self.decay >= 0:
            raise UsageError(f"{self.name} needs a rate above 0 and a decay of 0 or more.")

    @property
    def primary(self) -> Measure:
        """The measure that a single number of this task is."""
        return self.measures[0]

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, as JSON."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "stem"}

    def enter(self, features: Features, seed: int) -> Stem:
        """How features enter a head: through `stem`, or joined as they were fitted."""
        from gate.tasks.stem import Joined

        return self.stem(features, seed) if self.stem else Joined.fitted(features)

    @abc.abstractmethod
    def train(
        self,
        features: Features,
        truth: Truth,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        tick: Tick | None = None,
    ) -> nn.Module:
        """A head trained in full on these features, a function of (features, truth, seed, settings).

        features: one row per image of truth. seed: of first weights and the order of samples. checkpoint: a file from
        which an interrupted training goes on, to the same bits; written as it goes, removed by nobody.
        Raises ConfigurationError where the truth is not there or teaches nothing, NonFiniteError for NaN or infinity.
        """

    @abc.abstractmethod
    def judge(self, head: nn.Module, features: Features, truth: Truth) -> Array:
        """Counts per test sample (a pair, where pairs are matched): (n, ...). What any set of samples gives is the sum
        of theirs, so they can be resampled and paired; `measures` read them."""

    def taught(self, truth: Truth, seed: int) -> Array:
        """Rows that `train` learns from: all but where a seed is a split."""
        return np.arange(len(truth))

    def figure(self, counts: Array, which: int = 0) -> float:
        """The number that measure `which` makes of all samples' counts. counts: (n, ...), of `judge`."""
        measure = self.measures[which]
        columns = measure.columns(np.asarray(counts)[:, None])
        return measure.number(float(measure.errors(columns, np.ones(len(columns)))[0]))

    def require(self, features: Features, truth: Truth) -> None:
        """Refuse what cannot be trained on or judged, in a sentence."""
        if not features:
            raise ConfigurationError(f"{self.name} was given no features; name at least one layer.")
        for layer, value in features.items():
            if value.ndim != 4 or len(value) != len(truth):
                raise ConfigurationError(
                    f"Layer {layer!r} is {tuple(value.shape)}; {self.name} takes ({len(truth)}, channels, height, "
                    "width), a row per image."
                )
            if not bool(value.sum(dtype=value.dtype).isfinite()) and not bool(value.isfinite().all()):
                raise NonFiniteError(f"Layer {layer!r} holds NaN or infinity; extract it in float32.")
        held = {
            "labels": truth.labels is not None,
            "masks": truth.masks is not None,
            "pairs": bool(truth.pairs),
        }
        if not held[self.needs] or not len(truth):
            raise ConfigurationError(
                f"{self.name} needs {self.needs}, and this data has none; see docs/tasks.md for the layouts that do."
            )
        self.require_names(truth)

    def require_names(self, truth: Truth) -> None:
        """Refuse classes without a name: the number of names is the number of classes."""
        values, names = {
            "labels": (truth.labels, truth.classes),
            "masks": (truth.masks, truth.mask_classes),
            "pairs": (None, ()),
        }[self.needs]
        highest = -1 if values is None else int(values.max(initial=-1))
        if highest >= len(names) and values is not None:
            raise ConfigurationError(
                f"The {self.needs} hold class {highest}, and {len(names)} classes have names; name them all."
            )
