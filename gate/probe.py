"""What a probe is: a small model on features of a few labelled samples, judged where it did not train."""

# long: the contract of probes and the maps and counts that all of them share
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from gate.errors import ConfigurationError, NonFiniteError, PluginError
from gate.machine import release
from gate.measure import Direction, Figure, Measure, check_facts, confusion_error, confusion_margins
from gate.ridge import moments
from gate.sample import MIN_SAMPLES, SampleSet

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.metric import Pass

Needs = Literal["labels", "masks", ""]
Against = Literal["truth", "reference"]
Array = npt.NDArray[Any]

MAP_SIDE = 16
CHUNK = 64  # maps that a probe reads at once
SKETCHES = 4  # random signs by which the part of refits is told that hangs on pairs of images


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
            f"Probes need at least {MIN_SAMPLES} samples and {n} were given; add images or go without (--probes '')."
        )
    if samples.has_labels and n < len(samples.classes):
        raise ConfigurationError(
            f"{n} samples cannot cover {len(samples.classes)} classes; give as many samples or "
            "more, merge classes, or leave the probes out (--probes '')."
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


def keyed_generator(key: str) -> np.random.Generator:
    """Draws that are a function of a text alone: of a seed and a sample's id, never of order or number."""
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big"))


def _stratum(samples: SampleSet, label: int | None, mask: Array | None) -> int:
    if samples.has_labels and label is not None:
        return label
    if samples.has_masks and mask is not None and (mask > 0).any():
        return int(np.bincount(mask[mask > 0]).argmax())
    return -1


class Probe(Measure):
    """A small model that reads the truth from features. A subclass states its facts and writes `evaluate`.

    name: what the command line calls it. summary: one line. source: paper or library. needs: the truth it reads,
    "labels" or "masks"; "" for one that reads none. figure: "miou" or "balanced-accuracy" of the confusion counts that
    it returns; "" for a probe with a figure of its own, which states direction and range and, where its number is not
    the mean of one column, `error_of_sums` or `error_of_set` (`gate.measure.Measure`). reads: "features", the map of
    all layers; "passes" for a probe that asks the denoiser itself and writes `read`. once: whether a technique's first
    pass stands for its other timesteps and seeds. against: what features are judged by: the truth, by `evaluate`, or
    the maps of the reference F_ref, by `compare`.
    """

    reads: ClassVar[Literal["features", "passes"]] = "features"
    once: ClassVar[bool] = False
    against: ClassVar[Against] = "truth"
    needs: ClassVar[Needs] = "labels"
    figure: ClassVar[Figure | Literal[""]] = "balanced-accuracy"
    direction: ClassVar[Direction] = "higher"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "evaluate" in cls.__dict__ and "judge" not in cls.__dict__:
            cls.judge = Probe.judge  # type: ignore[method-assign]  # an inherited one would not ask the new `evaluate`
        if "name" not in cls.__dict__:
            return  # a class between Probe and the probes states its facts later
        check_facts(cls, "Probe", ("summary", "source"))
        if cls.needs not in ("labels", "masks", "") or cls.figure not in ("miou", "balanced-accuracy", ""):
            raise PluginError(
                f"Probe {cls.name!r} has needs {cls.needs!r} and figure {cls.figure!r}; needs is 'labels', 'masks' or "
                "'', figure 'miou', 'balanced-accuracy' or ''."
            )
        if cls.figure and (cls.direction, cls.range) != ("higher", (0.0, 1.0)):
            raise PluginError(
                f"Probe {cls.name!r} has the figure {cls.figure}, which lies in 0 ... 1, higher better."
            )
        if cls.against not in ("truth", "reference"):
            raise PluginError(f"Probe {cls.name!r} is against {cls.against!r}; it is 'truth' or 'reference'.")
        method = "evaluate" if cls.against == "truth" else "compare"
        if getattr(cls, method) is getattr(Probe, method):
            raise PluginError(f"Probe {cls.name!r} must define `{method}`.")
        if (cls.reads == "passes") != (cls.read is not Probe.read):
            raise PluginError(
                f"Probe {cls.name!r} reads {cls.reads!r}: `read` goes with 'passes', and only with it."
            )

    def refuses(self, backbone: Backbone) -> str:
        """Why it cannot be asked on this backbone, one sentence; "" where it can."""
        return ""

    def read(self, seen: Pass) -> Tensor:
        """What `evaluate` is given of one pass instead of the features' map: (b, c, h, w) float32, a row a sample that
        depends on that sample alone. `seen.again` makes further passes through the technique, which are not its own."""
        raise PluginError(f"Probe {self.name!r} reads {self.reads}: it has no `read`.")

    def evaluate(self, features: Array, samples: SampleSet, folds: Folds) -> Array:
        """What each sample adds to the figure, from the model that did not see it.

        features: (n, c, h, w) float32, one map per sample (`probe_map`); a mapped file where there are many, so read it
        in `chunks`. Returns confusion counts (n, k, k) int64 where there is a figure: rows are the truth, columns the
        prediction, k the number of classes (needs "labels") or mask classes ("masks"); a sample's counts sum to what
        was tested in it: 1, or its labelled positions. Else columns, (n,) or (n, m). What is returned for any set of
        samples adds up to theirs, so it can be resampled and paired.
        """
        raise PluginError(f"Probe {self.name!r} must define `evaluate`.")

    def compare(self, features: Array, reference: Array, samples: SampleSet, folds: Folds) -> Array:
        """As `evaluate`, for a probe against the reference: what each sample adds to the figure, (n,) or (n, m).

        reference: (n, c, h, w) float32, the maps of the same samples at t = 0 through the plain backbone.
        """
        raise PluginError(f"Probe {self.name!r} must define `compare`.")

    def judge(self, features: Array, samples: SampleSet, folds: Folds) -> tuple[Array, Array | None]:
        """What `evaluate` gives, and what another draw of training images would do to it.

        The second is (n,): what the error of all samples would change by if the probe were trained without this one, to
        first order. Intervals then hold the spread from refitting; with None they hold that of the judged images alone.
        Or (n, 1 + r): beside it sketches by `random_signs`, which tell how much of the spread hangs on pairs of a
        trained and a judged image, and would be counted with either.
        """
        return self.evaluate(features, samples, folds), None

    def columns(self, values: Array) -> npt.NDArray[np.float64]:
        """Counts (n, cells, k, k) as margins (n, cells, 3 k): all that a figure reads of them."""
        return super().columns(confusion_margins(values) if self.figure else values)

    def error_of_sums(self, sums: Array, n: Array) -> npt.NDArray[np.float64]:
        if not self.figure:
            return super().error_of_sums(sums, n)
        return confusion_error(sums.reshape(*sums.shape[:-1], 3, -1), self.figure)

    def blind_error(self, sums: Array, n: Array) -> npt.NDArray[np.float64] | None:
        """The error that a reader of nothing would make on the same samples, arguments as `error_of_sums` takes them;
        None where the probe cannot say.

        Where there is a figure: guesses as frequent as its own predictions, independent of the truth.
        """
        if not self.figure:
            return None
        true, predicted, _ = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        chance = true * predicted / np.maximum(true.sum(axis=-1, keepdims=True), 1)
        return self.error_of_sums(np.concatenate([true, predicted, chance], axis=-1), n)


def random_signs(samples: SampleSet, folds: Folds) -> Array:
    """SKETCHES random signs of each sample, (r, n), with mean 0 and mean square 1 in each fold.

    A function of the sample's id, so every technique has the same. Let c[i, j] be what training without image i does to
    the error on image j, less what it does to all, and what all do to j. Then ((c + c^T) signs) / sqrt(2), a sketch for
    either image, has the mean square sum over pairs of (c[i, j] + c[j, i])^2 (Hutchinson 1990, Communications in
    Statistics 19:433): the part of the error's variance that hangs on pairs. `sketches` makes its two terms.
    """
    signs = np.stack(
        [keyed_generator(f"sketching/{s.id}").choice((-1.0, 1.0), SKETCHES) for s in samples], axis=1
    )
    for _, test in folds:
        signs[:, test] -= signs[:, test].mean(axis=1, keepdims=True)
        signs[:, test] *= math.sqrt(len(test) / max(len(test) - 1, 1))
    return signs


def sketches(part: Array) -> Array:
    """A fold's c signs of the images trained on, or c^T signs of those judged, before what they have in common is taken
    off: (m, r) -> (m, r)."""
    return np.asarray((part - part.mean(axis=0)) / math.sqrt(2))


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
    require_finite(features)
    names = samples.classes if needs == "labels" else samples.mask_classes
    highest = max(int(s.label if needs == "labels" else s.mask.max()) for s in samples)  # type: ignore[arg-type, union-attr]
    if highest >= len(names):
        raise ConfigurationError(
            f"The {needs} of {samples.name!r} hold class {highest}, but {len(names)} have names; add them."
        )
    return len(names)


def require_finite(*features: Array) -> None:
    """Refuse maps with NaN or infinity, in a sentence. features: (n, c, h, w) each."""
    if not all(_finite(part) for maps in features for _, part in chunks(maps)):
        raise NonFiniteError("Features hold NaN or infinity, so no probe can be fitted; try --dtype float32.")


def _finite(features: Array) -> bool:
    """Whether all of (b, c, h, w) are finite: 0 times a number is 0, and no other product is."""
    flat = features.reshape(len(features), -1)
    with np.errstate(invalid="ignore"):
        return not (flat @ np.zeros(flat.shape[1], flat.dtype)).any()


def brier_error(sums: Array) -> npt.NDArray[np.float64]:
    """Mean squared error to the one-hot truth, >= 0. sums: (..., 2 or more), errors and how many; 0 of nothing."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1), dtype=np.float64)


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
    k = require_truth(samples, features, folds, "labels")
    rows = pooled(features)
    truth = np.array([s.label for s in samples])
    predicted = np.empty_like(truth)
    for train, test, seen, judged in standardised(rows, folds):
        predicted[test] = predict(seen, truth[train], judged)
    return label_counts(truth, predicted, k)


def standardised(rows: Array, folds: Folds) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Each fold's (train, test) with their rows, standardised by the training rows' moments. rows: (n, c)."""
    for train, test in folds:
        mean, std = moments(rows[train])
        yield train, test, (rows[train] - mean) / std, (rows[test] - mean) / std


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
        if f.shape[2:] == (side, side):
            pass
        elif f.shape[2] >= side and f.shape[3] >= side:
            f = F.adaptive_avg_pool2d(f, side)
        else:
            f = F.interpolate(f, size=(side, side), mode="bilinear", align_corners=False)
        rms = f.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        blocks.append(f / torch.where(rms == 0, torch.ones_like(rms), rms))
    return torch.cat(blocks, dim=1)


def pooled(features: Array) -> Array:
    """Mean and maximum over positions, the two global readings of a map: (n, c, h, w) -> (n, 2 c) float32."""
    parts = [
        np.concatenate([part.mean(axis=(2, 3)), part.max(axis=(2, 3))], axis=1)
        for _, part in chunks(features)
    ]
    return np.concatenate(parts).astype(np.float32)


def chunks(features: Array) -> Iterator[tuple[slice, Array]]:
    """Rows and their maps, (up to CHUNK, c, h, w), in order: maps of many samples outgrow memory, and come from a file
    whose pages are given back after each stretch."""
    for start in range(0, len(features), CHUNK):
        rows = slice(start, min(start + CHUNK, len(features)))
        yield rows, features[rows]
        release(features)


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
