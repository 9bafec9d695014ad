"""Classification: which class an image shows, from its features pooled over positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate.errors import UsageError
from gate.probe import label_counts
from gate.tasks.figures import CLASSIFICATION
from gate.tasks.loop import learn, rows_of
from gate.tasks.stem import Features, Stem, initialise, taken
from gate.tasks.task import Array, Task, Tick, Truth

JUDGED = 256


class ImageHead(nn.Module):
    """Class scores (b, k): mean and maximum of every standardised channel over positions, then the layers."""

    def __init__(self, stem: Stem, k: int, hidden: int) -> None:
        super().__init__()
        c = 2 * sum(stem.channels.values())
        self.stem = stem
        inner = [nn.Linear(c, hidden), nn.ReLU(), nn.Linear(hidden, k)] if hidden else [nn.Linear(c, k)]
        self.body = nn.Sequential(*inner)

    def pooled(self, features: Features) -> Tensor:
        """(b, 2 sum c)."""
        maps = self.stem(features).values()
        return torch.cat([part for x in maps for part in (x.mean(dim=(2, 3)), x.amax(dim=(2, 3)))], dim=1)

    def forward(self, features: Features) -> Tensor:
        scores: Tensor = self.body(self.pooled(features))
        return scores


@dataclass(frozen=True)
class Classification(Task):
    """Softmax regression. hidden: units of a hidden layer, 0 for none."""

    name = "classification"
    summary = "Class of the image by one linear layer on pooled features"
    source = "Linear probing; GATE, section 6.4"
    needs = "labels"
    measures = CLASSIFICATION
    cost = "about 0.5 s of one core on 800 scenes"

    epochs: int = 30
    rate: float = 3e-3
    decay: float = 0.1
    hidden: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 0:
            raise UsageError(f"Setting 'hidden' of {self.name} is 0 or more, not {self.hidden}.")

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
        assert truth.labels is not None
        stem = self.enter(features, seed)
        head = ImageHead(stem, len(truth.classes), self.hidden)
        initialise(head.body, seed)
        labels = torch.from_numpy(np.ascontiguousarray(truth.labels, dtype=np.int64))
        fixed = _pooled(head, features) if self.stem is None else None  # a stem that learns pools anew

        def loss(rows: list[int], step: int) -> Tensor:
            if fixed is not None:
                return F.cross_entropy(head.body(fixed[rows]), labels[rows])
            scores = head(taken(features, rows))
            return F.cross_entropy(scores, labels[rows]) + stem.penalty()

        learn(self, head, loss, truth.ids, seed=seed, checkpoint=checkpoint, tick=tick)
        return head

    def judge(self, head: nn.Module, features: Features, truth: Truth) -> Array:
        self.require(features, truth)
        assert truth.labels is not None and isinstance(head, ImageHead)
        with torch.no_grad():
            guess = head.body(_pooled(head, features)).argmax(dim=1).numpy()
        return label_counts(truth.labels.astype(np.int64), guess, len(truth.classes))


@dataclass(frozen=True)
class MlpClassification(Classification):
    """One hidden layer."""

    name = "classification-mlp"
    summary = "Class of the image by a hidden layer on pooled features"
    cost = "about 1.5 s of one core on 800 scenes"

    rate: float = 1e-3
    hidden: int = 256


@torch.no_grad()
def _pooled(head: ImageHead, features: Features) -> Tensor:
    n = len(next(iter(features.values())))
    parts = [head.pooled(taken(features, rows)) for rows in rows_of(n, JUDGED)]
    return torch.cat(parts)
