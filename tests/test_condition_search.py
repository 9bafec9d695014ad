"""The staged search of the Diffusion Classifier, on errors that are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gate.condition_search import (
    checked_loss,
    checked_stages,
    condition_error,
    copies,
    copy_timestep,
    implied_prediction,
    race,
    race_order,
    search,
    search_calls,
)
from gate.schedule import NoiseSchedule

STAGES = ((2, 5), (4, 2), (8, 1))


def table(rows: int, candidates: int, seed: int = 0) -> torch.Tensor:
    """(rows, candidates, copies) errors."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, candidates, 8, generator=g, dtype=torch.float64)


def asked(errors: torch.Tensor, seen: list[tuple[int, int, int]]) -> Any:
    def error(candidates: torch.Tensor, copy: int) -> torch.Tensor:
        seen.extend((row, c, copy) for row, c in enumerate(candidates.tolist()))
        return errors[torch.arange(len(errors)), candidates, copy]

    return error


def test_without_pruning_it_is_the_argmin_of_the_mean() -> None:
    errors = table(20, 7)
    best = errors.mean(dim=2).argmin(dim=1).tolist()
    for stages in (((8, 1),), ((2, 7), (8, 1))):
        assert search(20, 7, stages, asked(errors, [])) == best


def test_each_candidate_and_copy_is_asked_once_and_as_often_as_the_cost_says() -> None:
    seen: list[tuple[int, int, int]] = []
    search(5, 14, STAGES, asked(table(5, 14), seen))
    assert len(seen) == len(set(seen)) == 5 * search_calls(14, STAGES)
    assert search_calls(14, STAGES) == 14 * 2 + 5 * 2 + 2 * 4


def test_a_clear_winner_survives_and_equal_candidates_tie_to_the_first() -> None:
    errors = table(6, 9)
    errors[torch.arange(6), torch.arange(6)] -= 1
    assert search(6, 9, STAGES, asked(errors, [])) == list(range(6))
    same = table(4, 1).expand(4, 5, 8)
    assert search(4, 5, STAGES, asked(same, [])) == [0] * 4


def test_copies_are_nested_and_their_timesteps_begin_at_half_a_step() -> None:
    assert [copies(n, STAGES) for n, _ in STAGES] == [[2, 6], [0, 2, 4, 6], list(range(8))]
    steps = [copy_timestep(k, 8, 1000) for k in range(8)]
    assert steps[0] == 62 and steps[1] - steps[0] in (125, 126)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_errors_are_of_eps_or_of_v_for_flow_models(kind: str) -> None:
    if kind == "flow":
        schedule = NoiseSchedule.flow()
    else:
        alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
        schedule = NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), kind)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    x0, eps, said = (torch.randn(2, 4, 3, 3, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([300, 700])
    x_t = schedule.add_noise(x0, eps, t)
    request: Any = SimpleNamespace(x_t=x_t, t=t, eps=eps, batch=SimpleNamespace(x0=x0))
    found = condition_error(schedule, said, request, "l2")
    by_hand = said - (eps - x0) if kind == "flow" else schedule.eps_from(said, x_t, t) - eps
    torch.testing.assert_close(found, by_hand.square().mean(dim=(1, 2, 3)))
    again = implied_prediction(schedule, schedule.x0_from(said, x_t, t), request)
    torch.testing.assert_close(again, said, rtol=1e-6, atol=1e-6)
    assert condition_error(schedule, schedule.target(x0, eps, t), request, "l1").max() < 1e-12
    near = schedule.target(x0, eps, t)
    half = condition_error(schedule, near, request, "huber")
    assert float(half.max()) < 1e-12


def test_impossible_stages_and_losses_are_refused() -> None:
    for stages in ((), ((2, 4),), ((2, 4), (3, 1)), ((0, 1),)):
        with pytest.raises(ValueError, match=r"stage|copies"):
            checked_stages(stages)
    with pytest.raises(ValueError, match="huber"):
        checked_loss("l3")


def racing(errors: torch.Tensor, seen: list[tuple[int, int, int]]) -> Any:
    def error(rows: list[int], candidates: list[int], copy: int) -> torch.Tensor:
        seen.extend((r, c, copy) for r, c in zip(rows, candidates, strict=True))
        return errors[rows, candidates, copy]

    return error


def test_a_race_without_a_limit_is_the_argmin_and_asks_each_pair_once() -> None:
    errors = table(12, 7)
    seen: list[tuple[int, int, int]] = []
    assert race(12, 7, 8, math.inf, racing(errors, seen)) == errors.sum(dim=2).argmin(dim=1).tolist()
    assert len(seen) == len(set(seen)) == 12 * 7 * 8
    assert race(3, 4, 8, 1.5, racing(table(3, 1).expand(3, 4, 8), [])) == [0] * 3


def test_a_race_drops_who_is_far_behind_and_each_row_by_itself() -> None:
    errors = table(10, 9)
    seen: list[tuple[int, int, int]] = []
    errors[torch.arange(5), torch.arange(5)] -= 2
    whole = race(10, 9, 8, 1.5, racing(errors, seen))
    assert whole[:5] == list(range(5))
    clear, close = (sum(r < 5 for r, _, _ in seen), sum(r >= 5 for r, _, _ in seen))
    assert clear < close <= 5 * 9 * 8
    assert [race(1, 9, 8, 1.5, racing(errors[i : i + 1], []))[0] for i in range(10)] == whole


def test_a_race_begins_where_conditions_differ_most() -> None:
    assert race_order(8)[:3] == [3, 2, 4] and sorted(race_order(8)) == list(range(8))
