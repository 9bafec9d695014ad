"""Do features still carry the image they are of, and does an answer carry what it was never given?

A shift is a distance, and a distance can be made small by throwing away what there is to compare: features that are
the same for every image are as close as features can be. So three numbers are measured beside it, each against the
plain backbone's on the same images, timestep and layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gate.passes import Plan, stream
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone

GRID = 8  # positions a side that features and latents are averaged to
IMAGES = 32  # that are looked at
RIDGE = 0.1  # penalty, in rows: standardised columns, so a share of each column's variance
# measured on the embedded model at t = 50, 300, 600, shares of vanilla's: all techniques without a declared leak keep
# 0.81 of the spread (freeu), 0.89 of the breadth (noise-ensemble) and 0.87 of the image (shuffled-prompt, t = 600); an
# offset of one RMS keeps 0.5 of the spread, a channel a hundred times as loud 0.1 of the breadth, a box blur of nine
# 0.7 and spatial means 0.4 of the image
LEAST_SPREAD, LEAST_BREADTH, LEAST_IMAGE = 0.65, 0.5, 0.8
TELLING, VARYING = (
    0.2,
    0.005,
)  # the image and spread that vanilla must have before a share of it says anything
LEAKED_IMAGE, LEAKED_X0 = 0.3, 0.5  # of an image that was not in the latent; prompts reach 0 and 0.27 there
NO_SIGNAL = 1e-4


@dataclass(frozen=True)
class Carried:
    """What features carry. spread: share of their energy that varies with the image, as far as a linear map of the
    latents explains it (noise varies too, and is not meant), in [0, 1]; breadth: effective number of directions that
    their channels span (participation ratio of the covariance's eigenvalues), >= 1; both geometric means over layers.
    image: R2 of a ridge from all layers to the latents, on images that it did not see,
    at most 1."""

    spread: float
    breadth: float
    image: float

    def lacking(self, vanilla: Carried) -> str:
        """What they lost that vanilla's have, in words; "" where they still carry the image."""
        lost = []
        if not self.image >= LEAST_IMAGE * vanilla.image and vanilla.image > TELLING:
            lost.append(
                f"a ridge reads {max(self.image, 0):.2f} of the image from them, {vanilla.image:.2f} from vanilla's"
            )
        if not self.spread >= LEAST_SPREAD * vanilla.spread and vanilla.spread > VARYING:
            ours, theirs = 100 * self.spread, 100 * vanilla.spread
            lost.append(f"{ours:.1f} % of their energy varies with the image, {theirs:.1f} % of vanilla's")
        if not self.breadth >= LEAST_BREADTH * vanilla.breadth:
            lost.append(f"they span {self.breadth:.1f} directions, vanilla's {vanilla.breadth:.1f}")
        return "; ".join(lost)


@dataclass(frozen=True)
class Unseen:
    """What answers carry of images that were in no latent. image: R2 of a ridge from the features; possible: that from
    the plain backbone's features of the clean latents; x0: correlation of x0_hat with them, over what differs between
    images."""

    image: float
    possible: float
    x0: float

    def told(self) -> str:
        """In words; "" where they carry nothing."""
        found = []
        if self.image > LEAKED_IMAGE * self.possible and self.possible > TELLING:
            found.append(f"a ridge reads {self.image:.2f} of it from the features")
        if self.x0 > LEAKED_X0:
            found.append(f"x0_hat correlates with it by {self.x0:.2f}")
        return " and ".join(found)


@dataclass
class Grids:
    """Features averaged to a coarse grid, layer by layer, of the first images of a stream."""

    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    n: int = 0

    def add(self, features: Mapping[str, Tensor]) -> None:
        """features: {layer: (b, c, h, w)}; what is beyond IMAGES is left out."""
        for layer, feature in features.items():
            self.layers.setdefault(layer, []).append(_grid(feature[: IMAGES - self.n]))
        self.n = sum(map(len, next(iter(self.layers.values()), [])))

    def carried(self, x0: Tensor) -> Carried:
        """x0: (n, c, h, w), the latents of the same images."""
        grids = [torch.cat(parts) for parts in self.layers.values()]
        latents = _grid(x0[: self.n].to(grids[0].device))
        spreads = torch.stack([_spread(grid, latents) for grid in grids])
        breadths = torch.stack([_breadth(grid) for grid in grids])
        return Carried(_geometric(spreads), _geometric(breadths), _readable(grids, latents))


def _grid(maps: Tensor) -> Tensor:
    """(b, c, h, w) -> (b, GRID squared, c) float32: larger maps are averaged, smaller ones interpolated."""
    pooled = F.adaptive_avg_pool2d(maps.float(), (min(GRID, maps.shape[2]), min(GRID, maps.shape[3])))
    if pooled.shape[2:] != (GRID, GRID):
        pooled = F.interpolate(pooled, size=(GRID, GRID), mode="bilinear", align_corners=False)
    return pooled.flatten(2).transpose(1, 2)


def _geometric(values: Tensor) -> float:
    return float(values.clamp_min(1e-12).log().mean().exp())


def _spread(grid: Tensor, latents: Tensor) -> Tensor:
    """Energy around the mean image that a linear map of the latents explains, less what it would explain of noise, over
    all energy; 0 where there is none."""
    rows, image = ((g - g.mean(0)).flatten(0, 1) for g in (grid, latents))
    total = grid.square().sum()
    explained = (torch.linalg.qr(image).Q.T @ rows).square().sum()
    free = (len(grid) - 1) * grid.shape[1] - image.shape[1]  # degrees of freedom that are left
    chance = image.shape[1] / max(free, 1) * (rows.square().sum() - explained)
    return (explained - chance).clamp_min(0) / torch.where(total > 0, total, 1)


def _breadth(grid: Tensor) -> Tensor:
    rows = grid.flatten(0, 1)
    rows = rows - rows.mean(0)
    gram = rows.T @ rows if rows.shape[1] <= len(rows) else rows @ rows.T
    energy = gram.square().sum()
    return gram.trace().square() / torch.where(energy > 0, energy, 1)


def _readable(grids: Sequence[Tensor], x0: Tensor) -> float:
    """R2 over both halves of the images, each read by a ridge on the other."""
    scaled = [g / g.square().mean().sqrt().clamp_min(1e-30) for g in grids]
    rows = torch.cat(scaled, dim=-1)
    first = torch.arange(len(rows), device=rows.device) % 2 == 0
    error = total = 0.0
    for train in (first, ~first):
        x, y = rows[train].flatten(0, 1), x0[train].flatten(0, 1)
        mean, std, level = x.mean(0), x.std(0), y.mean(0)
        std = torch.where(std > 1e-5 * x.abs().amax(), std, 1)
        x, y = (x - mean) / std, y - level
        test, truth = (rows[~train].flatten(0, 1) - mean) / std, x0[~train].flatten(0, 1) - level
        gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T
        gram.diagonal().add_(RIDGE * len(x))
        if x.shape[1] <= len(x):
            read = test @ torch.linalg.solve(gram, x.T @ y)
        else:
            read = (test @ x.T) @ torch.linalg.solve(gram, y)
        error += float((truth - read).square().sum())
        total += float(truth.square().sum())
    return 1 - error / total if total > 0 else float("nan")


def unseen(plan: Plan) -> Unseen:
    """The plan's images through its technique at the noisiest timestep, under a schedule whose signal is gone there, so
    that whatever is drawn anew carries no image either. plan: fitted; its timesteps do not matter."""
    t = len(plan.backbone.schedule) - 1
    few = dataclasses.replace(
        plan,
        timesteps=(t,),
        seeds=plan.seeds[:1],
        pairs=(),
        clean=False,
        outputs=True,
        rows=slice(0, IMAGES),
    )
    clean, seen = Grids(), Grids()
    images, truth = [], []
    for passed in stream(dataclasses.replace(few, technique=Technique(), timesteps=(), clean=True)):
        clean.add(passed.response.features)
    with without_signal(plan.backbone):
        for passed in stream(few):
            seen.add(passed.response.features)
            images.append(passed.response.x0)
            truth.append(passed.request.batch.x0)
    x0 = torch.cat(truth)
    return Unseen(seen.carried(x0).image, clean.carried(x0).image, _correlation(torch.cat(images), x0))


@contextlib.contextmanager
def without_signal(backbone: Backbone) -> Iterator[None]:
    """For a while, nothing of the image is left at the last timestep."""
    usual = backbone.schedule
    signal, noise = usual.signal.clone(), usual.noise.clone()
    signal[-1], noise[-1] = NO_SIGNAL, 1.0
    backbone.schedule = dataclasses.replace(usual, signal=signal, noise=noise)
    try:
        yield
    finally:
        backbone.schedule = usual


def _correlation(a: Tensor, b: Tensor) -> float:
    """Of what differs between images. a, b: (n, c, h, w)."""
    a, b = a.float() - a.float().mean(0), b.float().to(a.device) - b.float().to(a.device).mean(0)
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / scale) if scale > 0 else 0.0
