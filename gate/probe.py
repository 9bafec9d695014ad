"""What a probe is: a small model on features of a few labelled samples, judged where it did not train."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gate.errors import ConfigurationError, NonFiniteError, PluginError
from gate.sample import MIN_SAMPLES, SampleSet

if TYPE_CHECKING:
    from torch import Tensor

Needs = Literal["labels", "masks"]
Figure = Literal["miou", "balanced-accuracy"]
Array = npt.NDArray[Any]

MAP_SIDE = 16


@dataclass(frozen=True, eq=False)
class Folds:
    """A split of n samples for cross-validation, the same for every technique.

    assignment: (n,) int64, the fold in which a sample is held out, 0 ... n_folds - 1.
    """

    assignment: npt.NDArray[np.int64]

    @property
    def n_folds(self) -> int:
        return int(self.assignment.max()) + 1 if len(self.assignment) else 0

    def __len__(self) -> int:
        return len(self.assignment)

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Indices (train, test) of each fold in turn."""
        for fold in range(self.n_folds):
            held_out = self.assignment == fold
            yield np.flatnonzero(~held_out), np.flatnonzero(held_out)


def make_folds(samples: SampleSet, n_folds: int = 4, *, seed: int = 0) -> Folds:
    """Folds of equal size, give or take a sample, every label spread over them as evenly as can be.

    A function of (seed, sample ids, labels): the order of the samples changes nothing, and one image that is
    there twice stays in one fold. Without labels, the largest object of the mask stands in. A label rarer
    than the folds is missing from some training sets, and its samples there count as errors, the same for
    every technique.
    """
    if n_folds < 2:
        raise ConfigurationError(f"Cross-validation needs at least 2 folds, not {n_folds}; the default is 4.")
    n = len(samples)
    if n < MIN_SAMPLES:
        raise ConfigurationError(
            f"Probes need at least {MIN_SAMPLES} samples and {n} were given; add images or leave probes out."
        )
    if samples.has_labels and n < len(samples.classes):
        raise ConfigurationError(
            f"{n} samples cannot cover {len(samples.classes)} classes; give as many samples or "
            "more, merge classes, or leave the probes out."
        )
    keys: dict[str, tuple[int, str]] = {}
    for s in samples:
        keys.setdefault(s.id, (_stratum(samples, s.label, s.mask), _shuffle_key(seed, s.id)))
    if len(keys) < n_folds:
        raise ConfigurationError(
            f"{len(keys)} different images cannot fill {n_folds} folds; the others are copies. Add images."
        )
    order = sorted(keys, key=lambda identity: (*keys[identity], identity))
    fold_of = {identity: rank % n_folds for rank, identity in enumerate(order)}
    return Folds(np.array([fold_of[s.id] for s in samples], dtype=np.int64))


def _shuffle_key(seed: int, identity: str) -> str:
    return hashlib.blake2b(f"folds/{seed}/{identity}".encode(), digest_size=8).hexdigest()


def _stratum(samples: SampleSet, label: int | None, mask: Array | None) -> int:
    if samples.has_labels and label is not None:
        return label
    if samples.has_masks and mask is not None and (mask > 0).any():
        return int(np.bincount(mask[mask > 0]).argmax())
    return -1


class Probe:
    """A small model that reads the truth from features. A subclass states its facts and writes `evaluate`.

    name: what the command line calls it. summary: one line. source: paper or library. needs: the truth it
    reads. figure: how its confusion counts become a number (`gate.ranking.statistics`); direction and range
    are those of the figure.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[Needs] = "labels"
    figure: ClassVar[Figure] = "balanced-accuracy"
    direction: ClassVar[Literal["higher"]] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            return  # a class between Probe and the probes states its facts later
        missing = [fact for fact in ("summary", "source") if not getattr(cls, fact)]
        if missing:
            raise PluginError(
                f"Probe {cls.name!r} does not state its {' or '.join(missing)}; set it on the class."
            )
        if cls.needs not in ("labels", "masks") or cls.figure not in ("miou", "balanced-accuracy"):
            raise PluginError(
                f"Probe {cls.name!r} has needs {cls.needs!r} and figure {cls.figure!r}; needs is "
                "'labels' or 'masks', figure 'miou' or 'balanced-accuracy'."
            )
        if cls.evaluate is Probe.evaluate:
            raise PluginError(f"Probe {cls.name!r} must define `evaluate`.")

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> npt.NDArray[np.int64]:
        """Confusion counts of every sample, from the model that did not see it.

        features: (n, c, h, w) float32, one map per sample (`probe_map`). Returns (n, k, k) int64: rows are
        the truth, columns the prediction, k the number of classes (needs "labels") or mask classes ("masks").
        A sample's counts sum to what was tested in it: 1, or its labelled positions. Counts of any set of
        samples add up to theirs, so they can be resampled and paired.
        """
        raise PluginError(f"Probe {self.name!r} must define `evaluate`.")


def require_truth(samples: SampleSet, features: Array, folds: Folds, needs: Needs) -> int:
    """Refuse what cannot be probed, in a sentence; else the number of classes k. features: (n, c, h, w)."""
    present = samples.has_labels if needs == "labels" else samples.has_masks
    if not present:
        raise ConfigurationError(
            f"This probe needs {needs} and data set {samples.name!r} does not give one to every sample; "
            f"add {needs}, or leave the probe out."
        )
    if not len(samples) == len(features) == len(folds):
        raise ValueError(
            f"{len(samples)} samples, {len(features)} feature maps and {len(folds)} fold entries differ"
        )
    if not np.isfinite(features.sum(dtype=np.float64)):
        raise NonFiniteError("Features hold NaN or infinity, so no probe can be fitted; try --dtype float32.")
    names = samples.classes if needs == "labels" else samples.mask_classes
    highest = max(int(s.label if needs == "labels" else s.mask.max()) for s in samples)  # type: ignore[arg-type, union-attr]
    if highest >= len(names):
        raise ConfigurationError(
            f"The {needs} of {samples.name!r} hold class {highest}, but {len(names)} have names; add them."
        )
    return len(names)


def label_counts(truth: Array, predicted: Array, k: int) -> npt.NDArray[np.int64]:
    """One count per sample. truth, predicted: (n,) int in 0 ... k - 1. Returns (n, k, k) int64."""
    counts = np.zeros((len(truth), k, k), dtype=np.int64)
    counts[np.arange(len(truth)), truth, predicted] = 1
    return counts


def classify(
    features: Array, samples: SampleSet, folds: Folds, predict: Callable[[Array, Array, Array], Array]
) -> npt.NDArray[np.int64]:
    """Counts (n, k, k) of a class probe on pooled, standardised features, each sample judged where it did not train.

    features: (n, c, h, w). predict(rows to train on (m, 2 c), their labels (m,), rows to judge) -> labels.
    """
    from sklearn.preprocessing import StandardScaler

    k = require_truth(samples, features, folds, "labels")
    rows = pooled(features)
    truth = np.array([s.label for s in samples])
    predicted = np.empty_like(truth)
    for train, test in folds:
        scale = StandardScaler().fit(rows[train])
        predicted[test] = predict(scale.transform(rows[train]), truth[train], scale.transform(rows[test]))
    return label_counts(truth, predicted, k)


def map_counts(truth: Array, predicted: Array, k: int) -> npt.NDArray[np.int64]:
    """Counts over positions. truth, predicted: (n, m) int, truth -1 = not tested. Returns (n, k, k) int64."""
    n = len(truth)
    sample, position = np.nonzero(truth >= 0)
    cell = (sample * k + truth[sample, position]) * k + predicted[sample, position]
    return np.bincount(cell, minlength=n * k * k).reshape(n, k, k).astype(np.int64)


def probe_map(features: Mapping[str, Tensor], side: int = MAP_SIDE) -> Tensor:
    """All layers of a pass as one map: (b, c_l, h_l, w_l) per layer -> (b, sum c_l, side, side) float32.

    Layers keep the order of the mapping. Larger maps are averaged over areas, smaller ones interpolated
    bilinearly. Then each sample's block of each layer is divided by its own root mean square, so that no
    layer outshouts another and a feature's overall scale, which techniques change, cannot pass for
    information; because the scale is the sample's own, the batch changes nothing. A block of zeros stays
    zero.
    """
    import torch
    import torch.nn.functional as F

    blocks = []
    for f in features.values():
        f = f.float()
        if f.shape[2] >= side and f.shape[3] >= side:
            f = F.adaptive_avg_pool2d(f, side)
        else:
            f = F.interpolate(f, size=(side, side), mode="bilinear", align_corners=False)
        rms = f.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        blocks.append(f / torch.where(rms == 0, torch.ones_like(rms), rms))
    return torch.cat(blocks, dim=1)


def pooled(features: Array) -> Array:
    """Mean and maximum over positions, the two global readings of a map: (n, c, h, w) -> (n, 2 c) float32."""
    return np.concatenate([features.mean(axis=(2, 3)), features.max(axis=(2, 3))], axis=1).astype(np.float32)


def grid_mask(mask: Array, grid: tuple[int, int], k: int) -> npt.NDArray[np.int64]:
    """A mask on the grid of a feature map, by majority: (h, w) int in -1 ... k - 1 -> `grid`, int64.

    A cell covers the pixels that area pooling would average (cells overlap where h is no multiple of the
    grid, and repeat where it is smaller). -1, unlabelled, votes as well; a tie goes to the lowest class, last
    to -1.
    """
    down, across = (_cells(size, cells) for size, cells in zip(mask.shape, grid, strict=True))
    value = np.where(mask < 0, k, mask)  # unlabelled last
    votes = np.arange(k + 1)[:, None, None] == value  # (k + 1, h, w)
    winner = (down @ votes.astype(np.float32) @ across.T).argmax(axis=0)  # counts of pixels, exact in float32
    return np.where(winner == k, -1, winner)


def _cells(size: int, cells: int) -> npt.NDArray[np.float32]:
    """Which pixels belong to which cell, as adaptive pooling draws them: (cells, size), 0 or 1."""
    index, pixel = np.arange(cells)[:, None], np.arange(size)
    inside = (pixel >= index * size // cells) & (pixel < -(-(index + 1) * size // cells))
    return inside.astype(np.float32)
