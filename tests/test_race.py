"""The race to the smallest sum of errors, on errors that are known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from gate.race import covariance, foresight, race, race_order

Asked = list[tuple[int, int, int]]


def table(rows: int, candidates: int, copies: int = 8, seed: int = 0) -> torch.Tensor:
    """(rows, candidates, copies) errors."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, candidates, copies, generator=g, dtype=torch.float64)


def racing(errors: torch.Tensor, seen: Asked) -> Any:
    def error(rows: list[int], candidates: list[int], copy: int) -> torch.Tensor:
        seen.extend((r, c, copy) for r, c in zip(rows, candidates, strict=True))
        return errors[rows, candidates, copy]

    return error


def test_without_a_limit_it_is_the_argmin_and_asks_each_triple_once() -> None:
    errors, seen = table(12, 7), []  # type: tuple[torch.Tensor, Asked]
    assert race(12, 7, 8, math.inf, racing(errors, seen)) == errors.sum(dim=2).argmin(dim=1).tolist()
    assert len(seen) == len(set(seen)) == 12 * 7 * 8


@pytest.mark.parametrize("strictness", [0.5, 2.5, math.inf])
def test_equal_candidates_tie_to_the_first(strictness: float) -> None:
    assert race(3, 4, 8, strictness, racing(table(3, 1).expand(3, 4, 8), [])) == [0] * 3


def test_it_drops_who_is_far_behind_and_each_row_by_itself() -> None:
    errors, seen = table(10, 9), []  # type: tuple[torch.Tensor, Asked]
    errors[torch.arange(5), torch.arange(5)] -= 2
    whole = race(10, 9, 8, 1.5, racing(errors, seen))
    assert whole[:5] == list(range(5))
    clear, close = (sum(r < 5 for r, _, _ in seen), sum(r >= 5 for r, _, _ in seen))
    assert clear < close <= 5 * 9 * 8
    assert [race(1, 9, 8, 1.5, racing(errors[i : i + 1], []))[0] for i in range(10)] == whole


def test_a_factor_and_what_all_candidates_share_change_nothing() -> None:
    errors = table(6, 9)
    shared = errors * torch.rand(6, 1, 1, dtype=torch.float64).add(1) + torch.rand(
        6, 1, 8, dtype=torch.float64
    )
    plain, moved = [], []  # type: tuple[Asked, Asked]
    assert race(6, 9, 8, 1.5, racing(errors, plain)) == race(6, 9, 8, 1.5, racing(shared, moved))
    assert plain == moved


def test_what_is_left_is_foretold_as_the_conditional_normal_law_says() -> None:
    """Regression of the sum on the copies seen, over draws of the model itself."""
    copies, made = 6, 3
    law, order = covariance(copies), list(race_order(copies))
    drawn = np.random.default_rng(0).multivariate_normal(np.zeros(copies), law, size=200_000)
    weights, left, *_ = np.linalg.lstsq(drawn[:, order[:made]], drawn.sum(axis=1), rcond=None)
    ahead = foresight(copies, made)
    np.testing.assert_allclose(ahead.weights, weights, atol=0.03)
    assert ahead.sd == pytest.approx(math.sqrt(left[0] / len(drawn)), rel=0.01)


def test_the_more_is_seen_the_less_is_left_and_in_the_end_nothing() -> None:
    left = [foresight(16, made).sd for made in range(1, 17)]
    assert all(a > b for a, b in itertools.pairwise(left)) and left[-1] == 0
    assert foresight(16, 16).weights.tolist() == [1] * 16


def test_the_order_leaves_least_at_every_step() -> None:
    """Against every other choice of the next copy, by the formula of the conditional variance."""
    law, order = covariance(8), list(race_order(8))
    assert sorted(order) == list(range(8))
    for made in range(1, 8):
        left = {}
        for k in set(range(8)) - set(order[: made - 1]):
            seen = [*order[: made - 1], k]
            rest = [j for j in range(8) if j not in seen]
            a, b, c = law[np.ix_(seen, seen)], law[np.ix_(rest, seen)], law[np.ix_(rest, rest)]
            left[k] = float((c - b @ np.linalg.inv(a) @ b.T).sum())
        assert left[order[made - 1]] == pytest.approx(min(left.values()))


def test_under_its_own_law_it_finds_the_best_for_a_third_of_the_calls() -> None:
    drawn = np.random.default_rng(1).multivariate_normal(np.zeros(16), covariance(16), size=(400, 14))
    errors, seen = torch.from_numpy(drawn), []  # type: tuple[torch.Tensor, Asked]
    found = race(400, 14, 16, 2.5, racing(errors, seen))
    assert np.mean(np.array(found) == drawn.sum(axis=2).argmin(axis=1)) >= 0.985
    assert len(seen) <= 0.4 * drawn.size


def test_two_candidates_are_not_parted_by_one_copy() -> None:
    """One difference says nothing of how large differences are."""
    seen: Asked = []
    race(20, 2, 16, 2.5, racing(table(20, 2, 16), seen))
    assert all((row, c, copy) in seen for row in range(20) for c in (0, 1) for copy in race_order(16)[:2])
