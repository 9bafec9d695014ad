"""How much of a feature's spectrum lies at high frequencies: A-SelecT's guide to timesteps and layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gate.metric import Metric, as_float

if TYPE_CHECKING:
    from torch import Tensor

    from gate.metric import Pass

CUT = 0.25  # cycles a position: half of what a grid can show along an axis


def high_frequency_ratio(feature: Tensor, cut: float = CUT) -> Tensor:
    """sum of |FFT2(F)|^2 where sqrt(u^2 + v^2) > cut, over the sum of |FFT2(F)|^2, both over all channels.

    feature: (n, c, h, w); u, v in cycles a position, up to 0.5 along an axis, 0.71 along the diagonal. The mean
    belongs to the whole, so a constant map has 0, a checkerboard 1, and no scale factor matters. A map of zeros, and
    a map of one position, has 0. Returns (n,) float32 or float64 in [0, 1]. White noise has the share of frequencies
    beyond the cut, 1 - pi cut^2 on a large grid (0.80 at the default).
    """
    import torch

    if feature.ndim != 4:
        raise ValueError(f"A feature must be (n, c, h, w), not {tuple(feature.shape)}")
    (f,) = as_float(feature)
    h, w = f.shape[2:]
    power = torch.fft.fft2(f).abs().square().sum(dim=1)  # (n, h, w)
    v, u = (torch.fft.fftfreq(size, device=f.device, dtype=f.dtype) for size in (h, w))
    beyond = (v[:, None].square() + u.square()).sqrt() > cut
    high, whole = (power * beyond).sum(dim=(1, 2)), power.sum(dim=(1, 2))
    return high / torch.where(whole == 0, torch.ones_like(whole), whole)


def ratios(features: Mapping[str, Tensor], cut: float = CUT) -> dict[str, Tensor]:
    """The ratio of every layer, {layer: (n,)}: of q, k, v and outputs, A-SelecT takes the largest over timesteps."""
    return {layer: high_frequency_ratio(feature, cut) for layer, feature in features.items()}


class HighFrequencyRatio(Metric):
    """Share of spectral energy beyond a radial cut, mean over the layers of a pass; higher is better by A-SelecT.

    It reads one pass, no reference and no label: screen several --timesteps with --layers of q, k, v and outputs, and
    take the timestep where it is largest. The paper's abstract names the ratio and what it is for; its formula was
    not to be had when this was written, so cut, normalisation and the sum over channels are ours. cut: in cycles a
    position.
    """

    name = "high-frequency-ratio"
    summary = "Share of the features' spectral energy beyond a radial cut, A-SelecT's guide to timesteps"
    source = "Liu et al. 2026, A-SelecT (arXiv 2603.25758); cut and normalisation ours"
    unit = "share of spectral energy"
    direction = "higher"
    range = (0.0, 1.0)
    compares = "pass"
    needs = frozenset({"features"})
    scale_invariant = True
    standard = False
    weakness = "Takes noise for detail: noisier features have more of it, and averaging noise away lowers it."

    def __init__(self, *, cut: float = CUT) -> None:
        self.cut = cut

    def measure(self, seen: Pass) -> Tensor:
        import torch

        return torch.stack(list(ratios(seen.response.features, self.cut).values())).mean(dim=0)
