"""How features enter a head: standardised per channel, at their own resolutions, joined by the head's first layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = Mapping[str, Tensor]  # {layer: (n, c, h, w)} float32 on the CPU, each layer at its own resolution

CHUNK = 64  # rows whose moments are taken at once
Grid = tuple[int, int]


class Stem(nn.Module):
    """Raw features of some rows to those that a head reads. channels, sides: of each layer it gives, a side being its
    height. grid: the largest of theirs, height and width."""

    channels: dict[str, int]
    sides: dict[str, int]
    grid: Grid

    def forward(self, features: Features) -> dict[str, Tensor]:
        """{layer: (b, c, h, w)} -> {layer: (b, c', h, w)}."""
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """What the loss gains by the rows of the last `forward`: 0 but for stems that weigh."""
        return torch.zeros(())


class Joined(Stem):
    """Every channel less its mean over its deviation, both over all training rows and positions.

    A channel that does not vary becomes 0. The mean and deviation are buffers, float32 (c, 1, 1) of each layer in turn.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.layers = tuple(shapes)
        self.channels = {layer: shape[0] for layer, shape in shapes.items()}
        self.sides = {layer: shape[1] for layer, shape in shapes.items()}
        self.grid = largest_grid(shapes)
        for i, layer in enumerate(self.layers):
            self.register_buffer(f"mean{i}", torch.zeros(self.channels[layer], 1, 1))
            self.register_buffer(f"gain{i}", torch.ones(self.channels[layer], 1, 1))

    @classmethod
    def fitted(cls, features: Features) -> Joined:
        """By the moments of these features. {layer: (n, c, h, w)}."""
        made = cls({layer: x.shape[1:] for layer, x in features.items()})
        for i, x in enumerate(features.values()):
            mean, std = moments(x)
            made.get_buffer(f"mean{i}").copy_(mean[:, None, None])
            varies = std > 1e-6 * mean.abs().clamp_min(1e-12)  # else its deviation is rounding
            gain = torch.where(
                varies, 1 / torch.where(varies, std, torch.ones_like(std)), torch.zeros_like(std)
            )
            made.get_buffer(f"gain{i}").copy_(gain[:, None, None])
        return made

    def forward(self, features: Features) -> dict[str, Tensor]:
        return {
            layer: (features[layer].float() - self.get_buffer(f"mean{i}")) * self.get_buffer(f"gain{i}")
            for i, layer in enumerate(self.layers)
        }


class FirstLayer(nn.Module):
    """The first linear layer of a head, over all layers' channels at every position of the largest grid.

    It is a 1x1 convolution of the features upsampled bilinearly and concatenated, computed at each layer's own
    resolution: interpolating positions and mixing channels commute, and there are fewer positions before. The first
    weights are those of one layer of all channels.
    """

    def __init__(self, channels: Mapping[str, int], grid: Grid, width: int) -> None:
        super().__init__()
        self.layers, self.grid = tuple(channels), grid
        self.parts = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels.values())
        self.bias = nn.Parameter(torch.zeros(width))
        self.fan_in = sum(channels.values())

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """{layer: (b, c, h, w)} -> (b, width, *grid)."""
        total: Tensor = self.bias[None, :, None, None]
        for layer, part in zip(self.layers, self.parts, strict=True):
            total = total + resized(part(features[layer]), self.grid)
        return total


def taken(features: Features, rows: Any) -> Features:
    """Some rows of every layer. rows: whatever indexes a tensor's first axis."""
    return {layer: x[rows] for layer, x in features.items()}


def joined(features: Mapping[str, Tensor], grid: Grid) -> Tensor:
    """All layers at one resolution, channels one after the other: (b, sum c, *grid)."""
    return torch.cat([resized(x, grid) for x in features.values()], dim=1)


def resized(x: Tensor, grid: Grid) -> Tensor:
    """(b, c, h, w) -> (b, c, *grid), bilinearly; itself where it has that size."""
    if tuple(x.shape[2:]) == tuple(grid):
        return x
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


def largest_grid(shapes: Mapping[str, Sequence[int]]) -> Grid:
    """(h, w) of the layer with the most positions. shapes: (c, h, w) by layer."""
    _, h, w = max(shapes.values(), key=lambda shape: shape[1] * shape[2])
    return int(h), int(w)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (c,) of each channel over rows and positions, summed in float64. x: (n, c, h, w)."""
    count = x.shape[0] * x.shape[2] * x.shape[3]
    total = square = torch.zeros(x.shape[1], dtype=torch.float64)
    shift = x[:1].double().mean(dim=(0, 2, 3))  # numbers near 0 keep their digits when they are squared
    for start in range(0, len(x), CHUNK):
        flat = x[start : start + CHUNK].double() - shift[:, None, None]
        total, square = total + flat.sum(dim=(0, 2, 3)), square + flat.square().sum(dim=(0, 2, 3))
    mean, second = total / count, square / count
    return (mean + shift).float(), (second - mean.square()).clamp_min(0).sqrt().float()


def initialise(head: nn.Module, seed: int) -> None:
    """First weights of every linear layer and convolution, uniform with variance 1 / fan-in, biases 0: a
    function of `seed`."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, FirstLayer):
                for part in module.parts:
                    _draw(part.weight, module.fan_in, g)  # type: ignore[arg-type]
                nn.init.zeros_(module.bias)
        inner = {id(p) for m in head.modules() if isinstance(m, FirstLayer) for p in m.parts}
        for module in head.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and id(module) not in inner:
                fan_in = module.weight[0].numel()
                _draw(module.weight, fan_in, g)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _draw(weight: Tensor, fan_in: int, g: torch.Generator) -> None:
    weight.copy_((2 * torch.rand(weight.shape, generator=g) - 1) * math.sqrt(3 / fan_in))
