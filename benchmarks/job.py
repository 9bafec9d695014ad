"""One measured cell: which images, prompts, timesteps, seeds and layers, and what every row must give for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gate.backbone import Backbone
from gate.sample import Sample, SampleSet
from gate.schedule import sample_noise

MODES = ("screen", "cold", "cached")
Cell = tuple[int, int, int]  # prompt, timestep, seed
Outputs = dict[Cell, dict[str, Tensor]]
PROMPTS = (
    "", "a photo of a cat", "a drawing", "high quality", "a bird on a branch", "low quality", "a house", "a red car",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """prompts x images x seeds x timesteps: how many of each."""

    prompts: int = 1
    images: int = 4
    seeds: int = 1
    timesteps: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.prompts <= len(PROMPTS):
            raise ValueError(
                f"There are {len(PROMPTS)} prompts; ask for 1 or more of them, not {self.prompts}."
            )

    @property
    def passes(self) -> int:
        """Of one image."""
        return self.prompts * self.seeds * self.timesteps

    @staticmethod
    def parse(text: str) -> Grid:
        """From "8,4,2,3"."""
        return Grid(*(int(part) for part in text.split(",")))


@dataclass(frozen=True, eq=False)
class Job:
    """What each row does. mode: "screen", prompts x timesteps x seeds; "cold", one pass over images that were never
    seen; "cached", the same with latents that are there already (rows without a cache encode all the same)."""

    mode: str
    samples: SampleSet
    prompts: tuple[str, ...]
    timesteps: tuple[int, ...]
    seeds: tuple[int, ...]
    layers: tuple[str, ...]
    batch: int

    @property
    def images(self) -> Tensor:
        """(n, 3, h, w) float32 in [0, 1]."""
        stacked = np.stack([sample.image for sample in self.samples])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().float() / 255

    def noise(self, rows: slice, seed: int, shape: Sequence[int]) -> Tensor:
        """(b, c, h, w), a generator per image: the draws that `gate` makes, so that outputs can be compared."""
        return torch.stack([sample_noise(s.id, seed, tuple(shape)) for s in self.samples.samples[rows]])

    @property
    def batches(self) -> list[slice]:
        n = len(self.samples)
        return [slice(i, min(i + self.batch, n)) for i in range(0, n, self.batch)]


def make_job(backbone: Backbone, mode: str, layers: tuple[str, ...], grid: Grid, batch: int) -> Job:
    """A job of this size. A final pass is about one technique, timestep and seed."""
    if mode != "screen":
        grid = Grid(1, grid.images)
    steps = tuple(torch.linspace(50, 300, grid.timesteps).round().int().tolist())
    samples = pictures(grid.images, backbone.image_size)
    return Job(mode, samples, PROMPTS[: grid.prompts], steps, tuple(range(grid.seeds)), layers, batch)


def pictures(n: int, size: int) -> SampleSet:
    """Held-out scenes of `tiny`, as large as asked for: pictures with edges and flat parts, the same in every run."""
    from gate.data import load_data

    return load_data("scenes-held-out", n=n, size=size, seed=0)


def blank(backbone: Backbone) -> Sample:
    return Sample(np.full((backbone.image_size, backbone.image_size, 3), 128, np.uint8))
