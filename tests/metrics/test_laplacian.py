"""Eq. 1-2 against scipy, the paper's identities, and the weakness that the docs state."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from gate.measure import share_removed
from gate.metrics.laplacian import Laplacian, laplacian, laplacian_difference
from gate.metrics.laplacian_normalised import LaplacianNormalised, channel_scale


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (16, 16)])
def test_laplacian_is_scipys(size):
    f = noise(2, 3, *size)
    expected = [[scipy.ndimage.laplace(plane) for plane in sample] for sample in f.numpy()]
    np.testing.assert_allclose(laplacian(f).numpy(), expected, atol=1e-12)


def test_equation_1_by_hand_in_numpy():
    f, f_ref = noise(2, 5, 7, 6), noise(2, 5, 7, 6, seed=1)
    magnitudes = [
        np.linalg.norm([[scipy.ndimage.laplace(p) for p in s] for s in x.numpy()], axis=1) for x in (f_ref, f)
    ]
    expected = np.abs(magnitudes[0] - magnitudes[1]).sum(axis=(1, 2))
    np.testing.assert_allclose(laplacian_difference(f, f_ref).numpy(), expected, rtol=1e-12)


def test_a_single_spike_by_hand():
    # a unit spike amid zeros: |Lap| is 4 there and 1 at its four neighbours
    spike = torch.zeros(1, 1, 5, 5)
    spike[0, 0, 2, 2] = 1
    assert laplacian_difference(spike, torch.zeros_like(spike)).item() == 8


def suppression(diff, anchor):
    """Eq. 2 of each sample: (anchor - diff) / anchor."""
    return torch.from_numpy(share_removed(diff.numpy()[:, None], anchor.numpy()[:, None]))


def test_reference_itself_scores_exactly_one():
    f_ref, anchor = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    diff = laplacian_difference(f_ref, f_ref)
    assert (diff == 0).all()
    assert (suppression(diff, laplacian_difference(anchor, f_ref)) == 1).all()


def test_no_technique_scores_exactly_zero():
    f_ref, anchor = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    diff = laplacian_difference(anchor, f_ref)
    assert (suppression(diff, laplacian_difference(anchor.clone(), f_ref)) == 0).all()


@pytest.mark.parametrize("metric", [Laplacian(), LaplacianNormalised()])
def test_constant_offset_changes_nothing(metric):
    f, f_ref = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    offset = noise(2, 4, 1, 1, seed=2)
    torch.testing.assert_close(metric.shift(f + offset, f_ref), metric.shift(f, f_ref))
    torch.testing.assert_close(metric.shift(f, f_ref + offset), metric.shift(f, f_ref))


def test_linear_in_space_is_zero_in_the_interior_and_shows_its_slope_on_the_border():
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    plane = (3 * x - 2 * y + 5)[None, None]
    lap = laplacian(plane)
    assert (lap[..., 1:-1, 1:-1] == 0).all()
    assert (lap[..., 1:-1, 0] == 3).all()
    assert (lap[..., 1:-1, -1] == -3).all()


@pytest.mark.parametrize(("factor", "expected"), [(0.8, 0.22), (0.6, 0.44), (0.4, 0.66)])
def test_weakness_shrinking_the_anchor_looks_like_suppression(factor, expected):
    """Nothing about the content of the feature improves, only its scale; the score of Eq. 2 rises all the
    same.

    Where noise makes |Lap| of the anchor r times the reference's, scaling it by s scores (1 - s) r / (r - 1):
    with r = 11 that is 0.22, 0.44 and 0.66."""
    f_ref = noise(4, 32, 16, 16)
    anchor = f_ref + 11 * noise(4, 32, 16, 16, seed=1)
    score = suppression(laplacian_difference(factor * anchor, f_ref), laplacian_difference(anchor, f_ref))
    assert (score > 1 - factor).all()
    assert score.mean().item() == pytest.approx(expected, abs=0.01)


def test_weakness_blind_to_permuted_channels_and_flipped_signs():
    f, f_ref = noise(2, 6, 8, 8), noise(2, 6, 8, 8, seed=1)
    plain = laplacian_difference(f, f_ref)
    torch.testing.assert_close(laplacian_difference(f.flip(1), f_ref), plain)
    torch.testing.assert_close(laplacian_difference(-f, f_ref), plain)
    assert (laplacian_difference(-f_ref, f_ref) == 0).all()
    assert (LaplacianNormalised().shift(-f_ref, f_ref) == 0).all()


def test_normalised_is_equation_1_in_units_of_the_reference():
    f, f_ref = noise(2, 6, 8, 8), noise(2, 6, 8, 8, seed=1)
    std = f_ref.numpy().std(axis=(2, 3), keepdims=True)
    expected = laplacian_difference(f / torch.from_numpy(std), f_ref / torch.from_numpy(std))
    torch.testing.assert_close(LaplacianNormalised().shift(f, f_ref), expected)


def test_normalised_ignores_the_scale_of_channels_but_not_of_the_feature_alone():
    f, f_ref = noise(2, 6, 8, 8), noise(2, 6, 8, 8, seed=1)
    loud = torch.tensor([1.0, 2.0, 5.0, 0.3, 1.5, 0.7]).view(1, 6, 1, 1).double()
    metric = LaplacianNormalised()
    torch.testing.assert_close(metric.shift(loud * f, loud * f_ref), metric.shift(f, f_ref))
    assert not torch.allclose(metric.shift(0.5 * f, f_ref), metric.shift(f, f_ref))


def test_a_channel_that_is_flat_in_the_reference_does_not_explode():
    f, f_ref = noise(1, 6, 8, 8), noise(1, 6, 8, 8, seed=1)
    f_ref[:, 0] = 3.0
    rms = f_ref.std(dim=(2, 3), correction=0).square().mean().sqrt()
    assert channel_scale(f_ref)[0, 0].item() == pytest.approx(0.01 * rms.item())
    assert torch.isfinite(LaplacianNormalised().shift(f, f_ref)).all()
    assert (channel_scale(noise(2, 3, 1, 1)) == 1).all()
