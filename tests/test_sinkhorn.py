"""Sinkhorn-Knopp: marginals in the limit, the uniform plan at high temperature, and prototypes of planted groups."""

from __future__ import annotations

import numpy as np
import pytest

from gate.sinkhorn import fit_prototypes, sinkhorn, unit


def cosines(b: int = 24, k: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((b, 16))) @ unit(rng.standard_normal((k, 16))).T


def test_marginals_hold_to_1e_12_after_200_iterations() -> None:
    q = sinkhorn(cosines(), iterations=200)
    np.testing.assert_allclose(q.sum(axis=0), 1 / 6, rtol=0, atol=1e-12)
    np.testing.assert_allclose(q.sum(axis=1), 1 / 24, rtol=0, atol=1e-12)


def test_three_iterations_have_exact_rows_and_nearly_balanced_prototypes() -> None:
    off = []
    for iterations in (1, 3, 10):
        q = sinkhorn(cosines(), iterations=iterations)
        np.testing.assert_allclose(q.sum(axis=1), 1 / 24, atol=1e-15)
        off.append(np.abs(q.sum(axis=0) - 1 / 6).max())
    assert off == sorted(off, reverse=True) and off[-1] < 0.02


def test_a_large_eps_gives_the_uniform_plan() -> None:
    np.testing.assert_allclose(sinkhorn(cosines(), eps=1e12), 1 / (24 * 6), rtol=1e-10)


def test_it_is_the_plan_of_most_score_and_entropy_with_these_marginals() -> None:
    """Optimality: log Q = (scores + a row's term + a column's term) / eps, so mixed differences of both agree."""
    scores, eps = cosines(), 0.05
    log_q = eps * np.log(sinkhorn(scores, eps, 200))
    for m in (scores, log_q):
        m -= m.mean(axis=0)
        m -= m.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(log_q, scores, atol=1e-10)


def test_no_score_overflows() -> None:
    assert np.isfinite(sinkhorn(1e6 * cosines())).all()


def test_prototypes_find_planted_groups_in_any_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((4, 12))
    group = np.arange(40) % 4
    z = unit(centres[group] + 0.3 * rng.standard_normal((40, 12)))
    found = sinkhorn(z @ fit_prototypes(z, 4).T).argmax(axis=1)
    assert len({(int(g), int(f)) for g, f in zip(group, found, strict=True)}) == 4
    order = rng.permutation(40)
    np.testing.assert_allclose(fit_prototypes(z[order], 4), fit_prototypes(z, 4), atol=1e-9)


def test_a_row_of_zeros_stays_one() -> None:
    assert unit(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0, 0], [0.6, pytest.approx(0.8)]]
