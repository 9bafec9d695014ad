"""Cosine and linear CKA against their definitions, and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from gate.metrics.cka import Cka, _from_channels, _from_positions, linear_cka_shift
from gate.metrics.cosine import Cosine, cosine_shift


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(noise(n, n, seed=seed))[0]


def mix(f: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", matrix, f)


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Gretton et al. 2005, Eq. 9: tr(K H L H) / (n - 1)^2."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ h @ m @ h)) / (n - 1) ** 2


@pytest.mark.parametrize(("channels", "side"), [(3, 6), (40, 4), (16, 4)])
def test_cka_is_its_hsic_definition(channels, side):
    a, b = noise(2, channels, side, side), noise(2, channels, side, side, seed=1)
    b = a + 0.5 * b
    for got, x, y in zip(Cka().shift(a, b), a, b, strict=True):
        k, m = (z.flatten(1).numpy().T @ z.flatten(1).numpy() for z in (x, y))
        expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
        assert 1 - got.item() == pytest.approx(expected, abs=1e-12)


def test_both_forms_of_cka_agree():
    a, b = noise(3, 20, 12), noise(3, 20, 9, seed=1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    torch.testing.assert_close(_from_positions(a, b), _from_channels(a, b))
    torch.testing.assert_close(linear_cka_shift(a, b), _from_channels(a, b))
    assert _from_positions(a.float(), b.float()).sub(_from_channels(a, b)).abs().max() < 1e-5


@pytest.mark.parametrize("channels", [4, 40])  # the channel form and the position form
def test_cka_ignores_rotation_scale_and_offset(channels):
    f, f_ref = noise(2, channels, 5, 5), noise(2, channels, 5, 5, seed=1)
    plain = Cka().shift(f, f_ref)
    for changed in (
        mix(f, orthogonal(channels)),
        0.3 * f,
        f + noise(1, channels, 1, 1, seed=2),
        f.flip(1),
        -f,
    ):
        torch.testing.assert_close(Cka().shift(changed, f_ref), plain)
    stretched = f * torch.linspace(0.2, 3, channels).double().view(1, -1, 1, 1)
    assert not torch.allclose(Cka().shift(stretched, f_ref), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cka_survives_the_scale_of_real_activations(dtype):
    f, f_ref = noise(1, 8, 16, 16).to(dtype), noise(1, 8, 16, 16, seed=1).to(dtype)
    torch.testing.assert_close(Cka().shift(3e4 * f, 3e4 * f_ref), Cka().shift(f, f_ref), rtol=1e-3, atol=1e-5)


def test_cka_of_flat_maps():
    flat, rough = torch.ones(1, 4, 3, 3), noise(1, 4, 3, 3).float()
    assert Cka().shift(flat, flat) == 0
    assert Cka().shift(flat, rough) == Cka().shift(rough, flat) == 1
    assert Cka().shift(noise(1, 4, 1, 1), noise(1, 4, 1, 1, seed=1)) == 0


def test_cosine_is_scikit_learns():
    f, f_ref = noise(2, 5, 3, 4), noise(2, 5, 3, 4, seed=1)
    for got, x, y in zip(cosine_shift(f, f_ref), f, f_ref, strict=True):
        pairs = cosine_similarity(x.flatten(1).numpy().T, y.flatten(1).numpy().T)
        assert got.item() == pytest.approx(1 - np.diag(pairs).mean(), abs=1e-12)


def test_cosine_ignores_scale_and_sees_permutation_sign_and_offset():
    f_ref = noise(2, 6, 8, 8)
    f = f_ref + 0.1 * noise(2, 6, 8, 8, seed=1)
    plain = Cosine().shift(f, f_ref)
    scale = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(3)).double() + 0.1
    torch.testing.assert_close(Cosine().shift(scale * f, f_ref), plain)
    assert (Cosine().shift(f.flip(1), f_ref) > plain + 0.5).all()
    torch.testing.assert_close(Cosine().shift(-f, f_ref), 2 - plain)
    assert (Cosine().shift(f + 1, f_ref) > plain).all()


def test_cosine_keeps_the_digits_of_a_small_shift():
    f_ref, direction = noise(1, 64, 8, 8), noise(1, 64, 8, 8, seed=1)
    f = f_ref + 1e-4 * direction
    exact = cosine_shift(f, f_ref).item()
    assert exact < 1e-8
    assert cosine_shift(f.float(), f_ref.float()).item() == pytest.approx(exact, rel=1e-2)


def test_cosine_of_zero_vectors():
    zero, one = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert Cosine().shift(zero, zero) == 0
    assert Cosine().shift(zero, one) == 1


@pytest.mark.parametrize("shape", [(2, 40, 3, 3), (2, 3, 8, 8)])  # both forms of CKA
def test_cka_of_a_map_without_variation(shape):
    flat, varied = torch.ones(shape), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for a, b, shift in ((flat, varied, 1.0), (varied, flat, 1.0), (flat, 2 * flat, 0.0)):
        assert Cka().shift(a, b).tolist() == [shift, shift]
