"""Label-scarce segmentation: an ensemble of small pixel classifiers, taught by a few images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate.data.order import draw
from gate.errors import ConfigurationError, UsageError
from gate.tasks.figures import SEGMENTATION
from gate.tasks.loop import learn
from gate.tasks.segmentation import PixelHead, grid_truth, judge_pixels
from gate.tasks.stem import Features, FirstLayer, Stem, initialise, taken
from gate.tasks.task import Array, Task, Tick, Truth


class Ensemble(nn.Module):
    """Scores (b, members * k, h, w) of pixel classifiers that share nothing: two hidden layers each."""

    def __init__(self, stem: Stem, k: int, members: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        first, second = hidden
        self.members, self.k = members, k
        self.first = FirstLayer(stem.channels, stem.grid, members * first)
        self.second = nn.Conv2d(members * first, members * second, 1, groups=members)
        self.last = nn.Conv2d(members * second, members * k, 1, groups=members)

    def forward(self, features: Features) -> Tensor:
        scores: Tensor = self.last(F.relu(self.second(F.relu(self.first(features)))))
        return scores


@dataclass(frozen=True)
class ScarceSegmentation(Task):
    """Each of `members` classifiers sees all labelled cells of `labelled` images, drawn from the training images by the
    seed: a seed is a split. They vote on every cell of the features' largest grid, and the votes are brought to
    the masks' resolution bilinearly; a tie goes to the lower class.

    hidden: units of the two layers of a classifier. All members see the images in one order and differ by their first
    weights.
    """

    name = "scarce-segmentation"
    summary = "Class of every pixel from a few labelled images, by an ensemble of pixel classifiers"
    source = "Baranchuk et al. 2022 (arXiv 2112.03126); GATE, section 6.2"
    needs = "masks"
    measures = SEGMENTATION
    sizes = (100, 300)
    resplits = True
    cost = "about 15 s of one core on 20 labelled scenes"

    epochs: int = 50
    batch: int = 1
    rate: float = 3e-3
    labelled: int = 20
    members: int = 10
    hidden: tuple[int, int] = (128, 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.labelled, self.members, *self.hidden) < 1:
            raise UsageError(f"labelled, members and hidden of {self.name} are 1 or more.")

    def taught(self, truth: Truth, seed: int) -> Array:
        """Rows of the labelled images, a function of (seed, ids). Raises ConfigurationError where there are too few."""
        ids = truth.ids
        if len(ids) < self.labelled:
            raise ConfigurationError(
                f"{self.name} wants {self.labelled} labelled images and there are {len(ids)}; "
                f"write {self.name}[labelled={len(ids)}], or give more."
            )
        order = sorted(range(len(ids)), key=lambda i: (draw(seed, f"split/{ids[i]}"), ids[i]))
        return np.array(sorted(order[: self.labelled]))

    def train(
        self,
        features: Features,
        truth: Truth,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        tick: Tick | None = None,
    ) -> nn.Module:
        self.require(features, truth)
        rows = self.taught(truth, seed)
        few, known = taken(features, rows), truth.rows(rows)
        stem = self.enter(few, seed)
        body = Ensemble(stem, len(truth.mask_classes), self.members, self.hidden)
        initialise(body, seed)
        head = PixelHead(stem, body)
        cells = torch.from_numpy(grid_truth(known, stem.grid))
        if not bool((cells >= 0).any()):
            raise ConfigurationError(f"No pixel is labelled, so {self.name} has nothing to learn from.")

        def loss(chosen: list[int], step: int) -> Tensor:
            scores = head(taken(few, chosen))
            b, _, h, w = scores.shape
            each = scores.reshape(b * self.members, body.k, h, w)
            wanted = cells[chosen].repeat_interleave(self.members, dim=0)
            if not bool((wanted >= 0).any()):
                return scores.sum() * 0
            return F.cross_entropy(each, wanted, ignore_index=-1) * self.members + stem.penalty()

        learn(self, head, loss, known.ids, seed=seed, checkpoint=checkpoint, tick=tick)
        return head

    def judge(self, head: nn.Module, features: Features, truth: Truth) -> Array:
        self.require(features, truth)
        assert isinstance(head, PixelHead) and isinstance(head.body, Ensemble)
        members, k = head.body.members, head.body.k

        def votes(rows: Features) -> Tensor:
            scores = head(rows)
            guess = scores.reshape(len(scores), members, k, *scores.shape[2:]).argmax(
                dim=2
            )  # (b, members, h, w)
            return torch.stack([(guess == c).sum(dim=1) for c in range(k)], dim=1).float()

        return judge_pixels(votes, features, truth)
