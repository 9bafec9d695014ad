"""A-SelecT's ratio: its limits, and what it says of white noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gate.backbone import Backbone
from gate.metric import Pass
from gate.metrics.high_frequency_ratio import HighFrequencyRatio, high_frequency_ratio, ratios
from gate.sample import SampleSet
from gate.testing import check_metric


def checkerboard(n: int = 8) -> torch.Tensor:
    steps = torch.arange(n)
    return (1.0 - 2 * ((steps[:, None] + steps) % 2)).expand(2, 3, n, n).clone()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_constant_has_none_and_a_checkerboard_nothing_else() -> None:
    assert high_frequency_ratio(torch.full((2, 3, 8, 8), 7.0)).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert high_frequency_ratio(checkerboard()).tolist() == pytest.approx([1, 1])
    assert high_frequency_ratio(torch.zeros(2, 3, 8, 8)).tolist() == [0, 0]
    assert high_frequency_ratio(noise(2, 5, 1, 1)).tolist() == [0, 0]


def test_neither_scale_nor_sign_matters_and_an_offset_belongs_to_the_whole() -> None:
    f = noise(4, 6, 9, 12)
    torch.testing.assert_close(high_frequency_ratio(-250 * f), high_frequency_ratio(f))
    assert (high_frequency_ratio(f + 3) < high_frequency_ratio(f)).all()
    mixed = torch.full((2, 3, 8, 8), 1.0) + checkerboard()  # equal energy low and high
    assert high_frequency_ratio(mixed).tolist() == pytest.approx([0.5, 0.5])


def test_it_is_the_share_of_squared_fourier_coefficients_beyond_the_cut() -> None:
    """Against numpy's own transform, counted coefficient by coefficient."""
    f, cut = noise(1, 2, 6, 10), 0.3
    high = whole = 0.0
    for channel in f[0].double().numpy():
        for (i, j), value in np.ndenumerate(np.fft.fft2(channel)):
            v, u = min(i, 6 - i) / 6, min(j, 10 - j) / 10
            whole += abs(value) ** 2
            high += abs(value) ** 2 * (math.hypot(u, v) > cut)
    assert high_frequency_ratio(f, cut).item() == pytest.approx(high / whole, rel=1e-5)


def test_white_noise_has_the_share_of_frequencies() -> None:
    found = high_frequency_ratio(noise(8, 64, 64, 64)).mean().item()
    assert found == pytest.approx(1 - math.pi * 0.25**2, abs=0.01)


def test_a_sample_depends_on_itself_and_half_precision_is_summed_in_single() -> None:
    f = noise(5, 4, 8, 8)
    torch.testing.assert_close(torch.cat([high_frequency_ratio(x[None]) for x in f]), high_frequency_ratio(f))
    assert high_frequency_ratio(f.half()).dtype == torch.float32
    f[1, 0, 2, 2] = torch.nan
    assert high_frequency_ratio(f).isnan().tolist() == [False, True, False, False, False]


def test_the_metric_is_the_mean_over_layers_and_keeps_its_contract(tiny: Backbone, scenes: SampleSet) -> None:
    batch = tiny.batch(scenes[:3].samples)
    layers = (
        "up1.attention0.block0.self.q",
        "up1.attention0.block0.self.k",
        "up1.attention0.block0.self.v",
        "up1",
    )
    request = batch.request(300, 0)
    with torch.no_grad():
        response = tiny.denoise(request, layers)
    each = ratios(response.features)
    assert tuple(each) == layers
    found = HighFrequencyRatio().measure(Pass(request, response, {}, {}))
    torch.testing.assert_close(found, sum(each.values()) / 4)
    report = check_metric(HighFrequencyRatio, tiny)
    assert report.ok, str(report)
