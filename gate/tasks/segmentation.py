"""Semantic segmentation: a class for every pixel, from frozen features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate.errors import ConfigurationError
from gate.probe import grid_mask, map_counts
from gate.tasks.figures import SEGMENTATION
from gate.tasks.loop import learn, rows_of
from gate.tasks.stem import Features, FirstLayer, Grid, Stem, initialise, resized, taken
from gate.tasks.task import Array, Task, Tick, Truth
from gate.tasks.upernet import UperNet

JUDGED = 32  # images that go through a head at once


class PixelHead(nn.Module):
    """A stem, and what makes class scores (b, k, h, w) of its features."""

    def __init__(self, stem: Stem, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = stem, body

    def forward(self, features: Features) -> Tensor:
        scores: Tensor = self.body(self.stem(features))
        return scores


def train_pixels(
    task: Task,
    body: Callable[[Stem, int], nn.Module],
    features: Features,
    truth: Truth,
    seed: int,
    checkpoint: Path | None,
    tick: Tick | None,
) -> PixelHead:
    """A head trained by cross-entropy over labelled cells of its own grid, whose classes are the masks' majorities.

    body: makes what follows the stem, for k classes. Images without a labelled cell are left out.
    """
    task.require(features, truth)
    stem = task.enter(features, seed)
    head = PixelHead(stem, body(stem, len(truth.mask_classes)))
    initialise(head.body, seed)
    with torch.no_grad():
        out = head(taken(features, slice(1)))
    cells = torch.from_numpy(grid_truth(truth, (int(out.shape[2]), int(out.shape[3]))))
    taught = torch.nonzero((cells >= 0).flatten(1).any(dim=1)).flatten().tolist()
    if not taught:
        raise ConfigurationError(f"No pixel is labelled, so {task.name} has nothing to learn from.")

    def loss(rows: list[int], step: int) -> Tensor:
        chosen = [taught[i] for i in rows]
        scores = head(taken(features, chosen))
        return F.cross_entropy(scores, cells[chosen], ignore_index=-1) + stem.penalty()

    learn(task, head, loss, [truth.ids[i] for i in taught], seed=seed, checkpoint=checkpoint, tick=tick)
    return head


def grid_truth(truth: Truth, grid: Grid) -> npt.NDArray[np.int64]:
    """The masks on a grid by majority, (n, *grid) int64; -1 where most is unlabelled."""
    assert truth.masks is not None
    k = len(truth.mask_classes)
    if truth.masks.shape[1:] == grid:
        return truth.masks.astype(np.int64)
    return np.stack([grid_mask(mask, grid, k) for mask in truth.masks]).astype(np.int64)


@torch.no_grad()
def judge_pixels(scores: Callable[[Features], Tensor], features: Features, truth: Truth) -> Array:
    """Confusion counts (n, k, k) of every labelled pixel, the scores brought to the masks' resolution bilinearly."""
    assert truth.masks is not None
    k, size = len(truth.mask_classes), truth.masks.shape[1:]
    counts = []
    for rows in rows_of(len(truth), JUDGED):
        guess = resized(scores(taken(features, rows)), (size[0], size[1])).argmax(1)
        known = truth.masks[rows].reshape(guess.shape[0], -1).astype(np.int64)
        counts.append(map_counts(known, guess.flatten(1).numpy(), k))
    return np.concatenate(counts)


@dataclass(frozen=True)
class LinearSegmentation(Task):
    """One linear layer at every position: the least that can be trained in full on all images."""

    name = "segmentation-linear"
    summary = "Class of every pixel by one linear layer, trained on all images"
    source = "The linear read-out of frozen features; DINOv2 (arXiv 2304.07193), section 7.4"
    needs = "masks"
    measures = SEGMENTATION
    cost = "about 3 s of one core on 800 scenes"

    batch: int = 8
    rate: float = 3e-2

    def train(
        self,
        features: Features,
        truth: Truth,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        tick: Tick | None = None,
    ) -> nn.Module:
        def body(stem: Stem, k: int) -> nn.Module:
            return FirstLayer(stem.channels, stem.grid, k)

        return train_pixels(self, body, features, truth, seed, checkpoint, tick)

    def judge(self, head: nn.Module, features: Features, truth: Truth) -> Array:
        self.require(features, truth)
        return judge_pixels(head, features, truth)


@dataclass(frozen=True)
class Segmentation(LinearSegmentation):
    """A UPerNet-like head: pyramid pooling on the coarsest layer, lateral layers and sums from coarse to fine, all
    levels joined at the finest. Group normalisation stands where the paper has batch normalisation, so that a batch
    changes nothing. width: channels inside, 512 in the paper.
    """

    name = "segmentation"
    summary = "Class of every pixel by a UPerNet-like head on all layers"
    source = "UPerNet: Xiao et al. 2018 (arXiv 1807.10221); GATE, section 6.3"
    cost = "about 16 s of one core on 800 scenes"

    epochs: int = 16
    rate: float = 1e-2
    width: int = 32

    def train(
        self,
        features: Features,
        truth: Truth,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        tick: Tick | None = None,
    ) -> nn.Module:
        def body(stem: Stem, k: int) -> nn.Module:
            return UperNet(stem.channels, stem.sides, stem.grid, k, self.width)

        return train_pixels(self, body, features, truth, seed, checkpoint, tick)
