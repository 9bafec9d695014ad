"""Diffusion-GAN's noise: the identity at t = 0, the priority pi ~ t, and a T that follows the discriminator."""

from __future__ import annotations

import numpy as np
import pytest

from gate.mixture import EVERY, T_MAX, T_MIN, AdaptiveT, ramp, signal_and_noise


def test_t_0_is_the_identity_and_noise_grows() -> None:
    signal, noise = signal_and_noise(np.array([0]))
    assert (signal[0], noise[0]) == (1.0, 0.0)
    signal, noise = signal_and_noise(np.arange(T_MAX + 1))
    assert (np.diff(noise) > 0).all() and noise[-1] > 0.99
    np.testing.assert_allclose(signal**2 + noise**2, 1)


def test_draws_follow_the_priority_distribution() -> None:
    t = 7
    drawn = ramp((np.arange(28_000) + 0.5) / 28_000, t)  # quantiles of pi: t (t + 1) / 2 = 28 parts
    assert np.bincount(drawn, minlength=t + 1).tolist() == [1000 * s for s in range(t + 1)]
    assert ramp(np.array([1e-12, 1 - 1e-12]), 300).tolist() == [1, 300]
    assert ramp(np.array([0.3, 0.9]), np.array([1, 1])).tolist() == [1, 1]


def test_a_discriminator_that_is_always_right_takes_exactly_100_000_samples() -> None:
    adaptive, seen = AdaptiveT(batch=25, kimg=100), 0
    levels = [adaptive.t]
    while adaptive.p < 1:
        adaptive.see(np.ones(25))
        seen += 25
        levels.append(adaptive.t)
    assert seen == 100_000
    assert (levels[0], levels[-1]) == (T_MIN, T_MAX)
    assert (np.diff(levels) >= 0).all()


def test_p_falls_to_0_below_the_target_and_stays_within_its_bounds() -> None:
    adaptive = AdaptiveT(batch=10, kimg=0.1)
    right, even = np.ones(10), np.array([1.0, -1.0] * 5)
    for _ in range(5 * EVERY):
        adaptive.see(right)
    assert adaptive.p == 1
    for _ in range(5 * EVERY):
        adaptive.see(even)
    assert (adaptive.p, adaptive.t) == (0, T_MIN)


def test_the_target_is_a_sign_of_0_6() -> None:
    for positive, p in ((16, 0), (17, pytest.approx(0.8))):  # of 20: E sign 0.6 and 0.7
        adaptive = AdaptiveT(batch=20, kimg=0.1)
        for _ in range(EVERY):
            adaptive.see(np.array([1.0] * positive + [-1.0] * (20 - positive)))
        assert adaptive.p == p


def test_t_is_monotone_in_p() -> None:
    adaptive = AdaptiveT(batch=1, kimg=1)
    found = []
    for moved in range(0, 1001, 50):
        adaptive._moved = moved
        found.append((adaptive.p, adaptive.t))
    assert found == sorted(found) and found[10] == (0.5, 505)
