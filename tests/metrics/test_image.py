"""SSIM and edge agreement against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from gate.metrics.image import Image, edge_agreement, edge_strength, gaussian_window, structural_similarity


def pictures(n: int = 2, h: int = 24, w: int = 20, seed: int = 0) -> torch.Tensor:
    """Smooth blobs, (n, 3, h, w) float64 in [0, 1]."""
    raw = np.random.default_rng(seed).random((n, 3, h, w))
    smooth = scipy.ndimage.gaussian_filter(raw, (0, 0, 2, 2))
    return torch.from_numpy((smooth - smooth.min()) / (smooth.max() - smooth.min()))


def ssim_by_scipy(x: np.ndarray, y: np.ndarray, side: int) -> float:
    """Wang et al. 2004, Eq. 13, one channel, windows inside the image, with a two-dimensional kernel."""
    line = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * 1.5**2))
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    r = side // 2

    def mean(z: np.ndarray) -> np.ndarray:
        return scipy.ndimage.correlate(z, kernel)[r : z.shape[0] - r, r : z.shape[1] - r]

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    return float(value.mean())


@pytest.mark.parametrize(("h", "w", "side"), [(24, 20, 11), (11, 11, 11), (8, 30, 7), (3, 3, 3)])
def test_ssim_is_scipys(h, w, side):
    x, y = pictures(2, h, w), pictures(2, h, w, seed=1)
    expected = [
        np.mean([ssim_by_scipy(a, b, side) for a, b in zip(p, q, strict=True)])
        for p, q in zip(x.numpy(), y.numpy(), strict=True)
    ]
    np.testing.assert_allclose(structural_similarity(x, y).numpy(), expected, atol=1e-10)


def test_ssim_of_constant_images_by_hand():
    x, y = torch.full((1, 3, 16, 16), 0.2).double(), torch.full((1, 3, 16, 16), 0.6).double()
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)  # no variance: the luminance term alone
    assert structural_similarity(x, y).item() == pytest.approx(expected)


def test_ssim_of_an_inverted_pattern_is_negative():
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).double().expand(1, 3, 16, 16)
    assert structural_similarity(board, 1 - board).item() < -0.9


def test_window_is_normalised_and_symmetric():
    window = gaussian_window(11)
    assert window.sum().item() == pytest.approx(1)
    assert torch.equal(window, window.flip(0))


def test_edges_are_scipys_sobel():
    x = pictures(2)
    luma = np.tensordot([0.299, 0.587, 0.114], x.numpy(), axes=(0, 1))
    expected = [
        np.hypot(scipy.ndimage.sobel(p, 0, mode="nearest"), scipy.ndimage.sobel(p, 1, mode="nearest"))
        for p in luma
    ]
    np.testing.assert_allclose(edge_strength(x).numpy(), expected, atol=1e-10)


def test_edge_agreement_is_the_harmonic_mean_of_precision_and_recall():
    x, y = pictures(2), pictures(2, seed=1)
    a, b = edge_strength(x).numpy(), edge_strength(y).numpy()
    shared = np.minimum(a, b).sum((1, 2))
    precision, recall = shared / b.sum((1, 2)), shared / a.sum((1, 2))
    expected = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(edge_agreement(x, y).numpy(), expected, atol=1e-12)


def test_the_distance_is_half_of_each():
    x, y = pictures(2), pictures(2, seed=1)
    expected = 1 - (structural_similarity(x, y) + edge_agreement(x, y)) / 2
    torch.testing.assert_close(Image().distance(x, y), expected)
    assert (structural_similarity(x, y) - edge_agreement(x, y)).abs().min() > 0.01


def test_edges_in_limits():
    x, flat = pictures(1), torch.full((1, 3, 24, 20), 0.5).double()
    assert edge_agreement(x, x) == 1
    assert edge_agreement(flat, flat) == 1
    assert edge_agreement(x, flat).item() == pytest.approx(0, abs=1e-12)


def test_equal_images_are_exactly_zero_apart_and_distance_grows_with_noise():
    x = pictures(3).float()
    torch.testing.assert_close(Image().distance(x, x), torch.zeros(3), atol=1e-6, rtol=0)
    rng = torch.Generator().manual_seed(0)
    distances = [
        Image().distance(x, (x + s * torch.randn(x.shape, generator=rng)).clamp(0, 1))
        for s in (0.02, 0.1, 0.4)
    ]
    assert (distances[0] < distances[1]).all()
    assert (distances[1] < distances[2]).all()
    assert (distances[2] < 1.5).all()


def test_weakness_blur_loses_less_than_wrong_detail_and_a_shift_in_place_counts():
    sharp = torch.from_numpy(np.random.default_rng(0).random((1, 3, 32, 32)))
    other = torch.from_numpy(np.random.default_rng(1).random((1, 3, 32, 32)))
    blurred = torch.from_numpy(scipy.ndimage.gaussian_filter(sharp.numpy(), (0, 0, 0.8, 0.8)))
    assert Image().distance(sharp, blurred) < Image().distance(sharp, other)
    assert Image().distance(sharp, sharp.roll(3, dims=3)) > 0.3
