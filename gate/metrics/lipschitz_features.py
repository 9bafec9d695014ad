"""How fast features change along the noise axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gate.metric import Metric
from gate.metrics.lipschitz import neighbour

if TYPE_CHECKING:
    from torch import Tensor

    from gate.metric import Pass


class LipschitzFeatures(Metric):
    """E-TSDM's K(t) for features (ours): mean over layers of ||F_t - F_{t+1}||_2 / ||F_t||_2, same x0 and eps.

    Relative, since layers differ in length. At the noisy end of the schedule the step is towards t - 1.
    """

    name = "lipschitz-features"
    summary = "Share of a feature's length that one timestep more changes, mean over layers"
    source = "ours; after Yang et al. 2023, E-TSDM (arXiv 2306.11251), section 3"
    unit = "share of the feature's length per timestep"
    compares = "pass"
    needs = frozenset({"features", "second-pass"})
    standard = False
    scale_invariant = True
    weakness = "Features that hold nothing of the input have none; it rewards insensitivity of any kind."

    def measure(self, seen: Pass) -> Tensor:
        assert seen.again is not None
        there = seen.again(neighbour(seen.request)).features
        shares = []
        for layer, here in seen.response.features.items():
            change = (here.double() - there[layer].double()).flatten(1).norm(dim=1)
            shares.append(change / here.double().flatten(1).norm(dim=1).clamp_min(1e-30))
        return torch.stack(shares).mean(0).float()
