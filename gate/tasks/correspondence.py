"""Semantic correspondence: where in a second image a point of the first one is."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate.errors import ConfigurationError, UsageError
from gate.tasks.figures import CORRESPONDENCE
from gate.tasks.loop import learn
from gate.tasks.stem import Features, FirstLayer, Grid, Joined, Stem, initialise, joined, resized, taken
from gate.tasks.task import Array, Pair, Task, Tick, Truth

ALPHA = 0.1  # of PCK
SIDE = 64  # cells per side on which matches are sought
FIRST_SCALE = math.log(1 / 0.07)  # CLIP's first logit scale, and the largest it may learn
LARGEST_SCALE = math.log(100)


class Nearest(nn.Module):
    """Descriptors of length 1 per layer at every position, joined: nothing is learned."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, features: Features) -> Tensor:
        """(b, sum c, *grid)."""
        return joined({layer: F.normalize(x.float(), dim=1) for layer, x in features.items()}, self.grid)


class Convolution(nn.Module):
    """Descriptors (b, width, *grid) by one convolution over all layers, and CLIP's logit scale."""

    def __init__(self, stem: Stem, width: int) -> None:
        super().__init__()
        self.stem, self.grid = stem, stem.grid
        self.body = FirstLayer(stem.channels, stem.grid, width)
        self.scale = nn.Parameter(torch.tensor(FIRST_SCALE))

    def forward(self, features: Features) -> Tensor:
        found: Tensor = self.body(self.stem(features))
        return found


@dataclass(frozen=True)
class Correspondence(Task):
    """The position whose descriptor has the largest cosine with that of the source point; nothing is trained.

    side: cells per side of the grid on which positions are sought, to which descriptors are upsampled bilinearly; no
    finer than the images. Counts of a pair: points, and how many lie within a tenth of the image's longer side, and of
    the box's.
    """

    name = "correspondence"
    summary = "Keypoints of one image found in another by the nearest descriptor"
    source = "DIFT: Tang et al. 2023 (arXiv 2306.03881); PCK: Yang & Ramanan 2013; GATE, section 6.1"
    needs = "pairs"
    measures = CORRESPONDENCE
    sizes = (300, 150)
    cost = "no training; judging 150 pairs takes about 2 s of one core"

    side: int = SIDE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 1:
            raise UsageError(f"Setting 'side' of {self.name} is 1 or more, not {self.side}.")

    def train(
        self,
        features: Features,
        truth: Truth,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
        tick: Tick | None = None,
    ) -> nn.Module:
        if self.stem is not None:
            raise UsageError(
                f"{self.name} trains nothing, so it cannot learn to weigh; use correspondence-conv."
            )
        self.require(features, truth)
        return Nearest(Joined({layer: x.shape[1:] for layer, x in features.items()}).grid)

    @torch.no_grad()
    def judge(self, head: nn.Module, features: Features, truth: Truth) -> Array:
        self.require(features, truth)
        side = min(self.side, truth.size)
        counts = np.zeros((len(truth.pairs), 3))
        for i, pair in enumerate(truth.pairs):
            both = head(taken(features, [pair.source, pair.target]))
            target = F.normalize(resized(both[1:], (side, side)), dim=1)[0]
            found = match(both[0], target, torch.from_numpy(pair.source_points), truth.size)
            counts[i] = hits(pair, found.numpy())
        return counts


@dataclass(frozen=True)
class ConvCorrespondence(Correspondence):
    """One convolution (1x1, over all layers) whose descriptors match, trained by CLIP's symmetric loss with a learnable
    scale: each source point picks among all positions of the target, and each target point among those of the source.

    width: of a descriptor. points: of a pair in a step, drawn anew each time.
    """

    name = "correspondence-conv"
    summary = "Keypoints found by the nearest descriptor of one trained convolution"
    source = "Luo et al. 2023 (arXiv 2305.14334), appendix; loss: CLIP (arXiv 2103.00020); GATE, section 6.1"
    cost = "about 6 s of one core on 300 pairs"

    epochs: int = 10
    batch: int = 8
    rate: float = 3e-3
    width: int = 64
    points: int = 32

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
        pairs = [pair for pair in truth.pairs if len(pair.source_points)]
        if not pairs:
            raise ConfigurationError(f"No pair has a keypoint, so {self.name} has nothing to learn from.")
        head = Convolution(self.enter(features, seed), self.width)
        initialise(head.body, seed)
        names = [f"{truth.ids[pair.source]}>{truth.ids[pair.target]}" for pair in pairs]

        def loss(rows: list[int], step: int) -> Tensor:
            chosen = [pairs[i] for i in rows]
            images = [i for pair in chosen for i in (pair.source, pair.target)]
            maps = F.normalize(head(taken(features, images)), dim=1)
            scale = head.scale.clamp(max=LARGEST_SCALE).exp()
            total = maps.new_zeros(())
            for i, (row, pair) in enumerate(zip(rows, chosen, strict=True)):
                g = torch.Generator().manual_seed(_key(seed, step, names[row]))
                drawn = torch.randperm(len(pair.source_points), generator=g)[: self.points].numpy()
                total = total + symmetric_loss(maps[2 * i], maps[2 * i + 1], pair, drawn, truth.size, scale)
            return total / len(chosen) + head.stem.penalty()

        learn(self, head, loss, names, seed=seed, checkpoint=checkpoint, tick=tick)
        return head


def symmetric_loss(a: Tensor, b: Tensor, pair: Pair, drawn: Array, size: int, scale: Tensor) -> Tensor:
    """Mean of two cross-entropies: source points among all positions of b, target points among those of a.

    a, b: (d, h, w), of length 1 at each position. drawn: which of the pair's points. The right answer is the cell that
    the other point lies in.
    """
    d, h, w = a.shape
    points = [torch.from_numpy(p[drawn]) for p in (pair.source_points, pair.target_points)]
    cells = [cell_of(p, size, (h, w)) for p in points]
    of_a = F.normalize(descriptors(a, points[0], size), dim=1)
    of_b = F.normalize(descriptors(b, points[1], size), dim=1)
    forward = F.cross_entropy(scale * of_a @ b.reshape(d, h * w), cells[1])
    return (forward + F.cross_entropy(scale * of_b @ a.reshape(d, h * w), cells[0])) / 2


def match(source: Tensor, target: Tensor, points: Tensor, size: int) -> Tensor:
    """Where each point is found, (m, 2) (x, y) in pixels. source: (d, h, w). target: (d, h', w'), of length 1 at each
    position."""
    d, h, w = target.shape
    likeness = F.normalize(descriptors(source, points, size), dim=1) @ target.reshape(d, h * w)
    best = likeness.argmax(dim=1)
    row, column = torch.div(best, w, rounding_mode="floor"), best % w
    cell = torch.tensor([size / w, size / h])
    return (torch.stack([column, row], dim=1).float() + 0.5) * cell - 0.5


def descriptors(x: Tensor, points: Tensor, size: int) -> Tensor:
    """The map at points in pixels of a size x size image, bilinearly: (d, h, w), (m, 2) -> (m, d)."""
    place = (points.float() + 0.5) * (2 / size) - 1
    found = F.grid_sample(
        x[None], place[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0, :, 0].T


def cell_of(points: Tensor, size: int, grid: Grid) -> Tensor:
    """The cell that a point lies in, (m,) of h * w. points: (m, 2) (x, y) in pixels."""
    h, w = grid
    column = ((points[:, 0] + 0.5) * w / size).floor().long().clamp(0, w - 1)
    row = ((points[:, 1] + 0.5) * h / size).floor().long().clamp(0, h - 1)
    return row * w + column


def hits(pair: Pair, found: Array) -> tuple[int, int, int]:
    """Points of a pair, those within ALPHA of the image, and of the box. found: (m, 2) in pixels as extracted."""
    distance = np.linalg.norm((found - pair.target_points) * np.asarray(pair.scale), axis=1)
    right = [int((distance <= ALPHA * length).sum()) for length in (pair.image, pair.box)]
    return len(distance), right[0], right[1]


def _key(seed: int, step: int, name: str) -> int:
    digest = hashlib.blake2b(f"points/{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
