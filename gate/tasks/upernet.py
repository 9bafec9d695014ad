"""UPerNet's decoder in plain torch: pyramid pooling, a feature pyramid, one fused map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate.tasks.stem import FirstLayer, Grid, resized

BINS = (1, 2, 3, 6)  # cells per side of the pyramid pooling (Zhao et al. 2017)
GROUPS = 8


class UperNet(nn.Module):
    """Class scores (b, k, *grid) of features {layer: (b, c, h, w)}.

    channels, sides: of each layer. Layers of one resolution are one level. width: channels of every level.
    """

    def __init__(
        self, channels: Mapping[str, int], sides: Mapping[str, int], grid: Grid, k: int, width: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.levels = [
            [layer for layer in channels if sides[layer] == side] for side in sorted(set(sides.values()))
        ]
        first = sum(channels[layer] for layer in self.levels[0])
        self.bins = [n for n in BINS if n <= min(sides.values())]
        self.pyramid = nn.ModuleList(nn.Sequential(nn.Conv2d(first, width, 1), nn.ReLU()) for _ in self.bins)
        self.deepest = block(first + width * len(self.bins), width, 3)
        self.laterals = nn.ModuleList(
            block(sum(channels[layer] for layer in level), width, 1) for level in self.levels[1:]
        )
        self.smooth = nn.ModuleList(block(width, width, 3) for _ in self.levels[1:])
        # fusing by a 3x3 convolution, as the paper does, is most of the cost; on a grid that the levels' own 3x3
        # convolutions have seen, mixing channels suffices, and commutes with the upsampling
        self.fuse = FirstLayer({str(i): width for i in range(len(self.levels))}, grid, width)
        self.classes = nn.Conv2d(width, k, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        deepest = torch.cat([features[layer] for layer in self.levels[0]], dim=1)
        side = (int(deepest.shape[2]), int(deepest.shape[3]))
        pooled = [
            resized(part(F.adaptive_avg_pool2d(deepest, n)), side) for n, part in zip(self.bins, self.pyramid)
        ]
        top = self.deepest(torch.cat([deepest, *pooled], dim=1))
        outputs = [top]
        for level, lateral, smooth in zip(self.levels[1:], self.laterals, self.smooth, strict=True):
            x = lateral(torch.cat([features[layer] for layer in level], dim=1))
            top = x + resized(top, (int(x.shape[2]), int(x.shape[3])))
            outputs.append(smooth(top))
        fused = self.fuse({str(i): x for i, x in enumerate(outputs)})
        scores: Tensor = self.classes(F.relu(fused))
        return scores


def block(c: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution, group normalisation, ReLU; positions stay."""
    groups = next(g for g in (GROUPS, 4, 2, 1) if width % g == 0)
    convolution = nn.Conv2d(c, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(groups, width), nn.ReLU())
