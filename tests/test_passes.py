"""Which passes a plan makes, on the backbone worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gate.calls import Memo, counted
from gate.passes import Passed, Plan, reconstruct, single_pass, stream
from gate.request import CutResponse, Request, Response, mean_response
from gate.technique import Technique
from tests.closed_form import UNIT, ClosedForm, flat_samples, known_noise

__all__ = ["known_noise"]
pytestmark = pytest.mark.usefixtures("known_noise")


CallNext = Callable[[Request], Response]


def plan(**settings: Any) -> Plan:
    given = {"backbone": ClosedForm(), "technique": Technique(), "samples": flat_samples(12), **settings}
    return Plan(**given)


def test_a_plan_left_alone_takes_the_first_seed_in_batches_of_eight() -> None:
    assert plan(timesteps=(1, 2)).cells == ((1, 0), (2, 0))
    assert [rows for rows, _ in plan().batches()] == [slice(0, 8), slice(8, 12)]
    assert [len(batch) for _, batch in plan().batches()] == [8, 4]


def test_pairs_stand_in_for_all_combinations() -> None:
    assert plan(timesteps=(2, 1), seeds=(0, 1)).cells == ((2, 0), (2, 1), (1, 0), (1, 1))
    assert plan(timesteps=(2, 1), seeds=(0, 1), pairs=((1, 1),)).cells == ((1, 1),)


def test_a_slice_of_a_slice_counts_from_the_slice() -> None:
    part = plan(batch_size=3).sliced(slice(2, 10))
    assert part.rows == slice(2, 10) and part.sliced(slice(1, 4)).rows == slice(3, 6)
    assert [rows for rows, _ in part.batches()] == [slice(2, 5), slice(5, 8), slice(8, 10)]


def test_latents_given_are_used_row_by_row() -> None:
    x0 = torch.arange(12.0)[:, None, None, None].expand(12, 2, 2, 2)
    taken = [batch.x0[:, 0, 0, 0].tolist() for _, batch in plan(x0=x0, batch_size=5).batches()]
    assert taken == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_the_reference_comes_first_in_each_batch_and_calls_are_per_image() -> None:
    made = list(stream(plan(timesteps=(1,), seeds=(0, 1), layers=("sum",), batch_size=6, clean=True)))
    assert [p.is_reference for p in made] == [True, False, False] * 2
    assert [p.rows for p in made[::3]] == [slice(0, 6), slice(6, 12)]
    assert [p.calls for p in made] == [1] * 6 and all(p.conditioned[0] == 0 for p in made)
    assert all(0 <= p.seconds < 5 and 0 <= p.conditioned[1] < 5 for p in made)
    assert not any(p.is_reference for p in stream(plan(timesteps=(1,))))


@pytest.mark.parametrize(("strength", "red"), [(1.0, 1.4), (0.6, 1.225), (0.1, 1.225)])
def test_the_last_step_of_a_reconstruction_by_hand(strength: float, red: float) -> None:
    """x0_hat = x (1 - s / 2) / a from t = ceil(3 strength) - 1, but 1 at least.

    At t = 2, x = 0.6 + 0.8 and x0_hat = 1.4 * 0.6 / 0.6; at t = 1, x = 0.8 + 0.6 and x0_hat = 1.4 * 0.7 / 0.8.
    """
    batch = plan().batch(slice(0, 2))
    image = reconstruct(Technique(), batch, batch.neutral, strength=strength, steps=1, seed=0)
    assert image is not None

    torch.testing.assert_close(image[:, 0], torch.full((2, 2, 2), red * UNIT), rtol=1e-5, atol=1e-6)


class Shifted(Technique):
    """Starts one above the latent that it is given, and asks three times: twice the same, once without features."""

    name, summary = "shifted", "shifted"

    def start(self, request: Request) -> Request:
        return request.with_(x_t=request.x_t + 1)

    def denoise(self, request: Request, call_next: Any) -> Response:
        first, second = call_next(request), call_next(request)
        bare = call_next(request.with_(features=False))
        assert set(first.features) == set(second.features) == {"sum"} and not bare.features
        return first.with_(prediction=first.prediction + second.prediction + bare.prediction)


def test_only_noised_passes_start_elsewhere_and_only_the_others_answer_once() -> None:
    batch = plan().batch(slice(0, 4))
    noised, clean = batch.request(1, 0), batch.clean_request()
    for request, red, calls in (
        (noised, 3 * (1.4 + 1) / 2, 3),
        (clean, 3 * 1 / 2, 2),
        (noised.with_(origin="sampled"), 3 * 1.4 / 2, 2),
    ):
        with counted(batch.backbone) as count:
            response = single_pass(Shifted(), request, ("sum",))
        torch.testing.assert_close(response.prediction[:, 0], torch.full((4, 2, 2), red))
        assert count.rows == 4 * calls


def test_an_answer_that_is_known_is_taken_for_that_very_request() -> None:
    batch = plan().batch(slice(0, 4))
    clean, other = batch.clean_request(), batch.clean_request()
    answer = single_pass(Technique(), clean, ("sum",))
    with counted(batch.backbone) as count:
        assert single_pass(Technique(), clean, ("sum",), known=answer) is answer
        assert count.rows == 0
        assert single_pass(Technique(), other, ("sum",)) is not answer
    assert count.rows == 4


class Curious(Technique):
    """Looks at the prediction of its call, in a state that ends with the call."""

    name = "curious"
    asked = 0

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        type(self).asked += 1
        response = call_next(request)
        return response.with_(prediction=2 * response.prediction)


class Averaged(Technique):
    name = "averaged"

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        return mean_response([call_next(request.renoised(seed)) for seed in (0, 1)])


class Greedy(Technique):
    """Catches whatever comes."""

    name = "greedy"

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        response = call_next(request)
        try:
            return response.with_(x0=response.x0 + 1)
        except Exception:
            return response


def test_predictions_that_nobody_wants_are_not_made_and_features_are_the_same() -> None:
    for technique in (Technique(), Averaged()):
        whole = list(stream(plan(timesteps=(1,), layers=("sum",), technique=technique)))
        cut = list(stream(plan(timesteps=(1,), layers=("sum",), technique=technique, outputs=False)))
        assert [type(p.response) for p in whole] == [Response, Response]
        assert [type(p.response) for p in cut] == [CutResponse, CutResponse]
        for a, b in zip(whole, cut, strict=True):
            assert torch.equal(a.response.features["sum"], b.response.features["sum"]) and a.calls == b.calls
            assert torch.equal(a.response.copy().features["sum"], b.response.copy().features["sum"])


@pytest.mark.parametrize("technique", [Curious(), Greedy()])
def test_who_asks_for_a_prediction_gets_it_from_a_pass_that_is_made_again(technique: Technique) -> None:
    whole = list(stream(plan(timesteps=(1, 0), layers=("sum",), technique=technique)))
    Curious.asked = 0
    cut = list(stream(plan(timesteps=(1, 0), layers=("sum",), technique=technique, outputs=False)))
    assert Curious.asked in (0, len(cut) + 1)  # the first pass alone is made twice
    for a, b in zip(whole, cut, strict=True):
        assert torch.equal(a.response.prediction, b.response.prediction)
        assert torch.equal(a.response.features["sum"], b.response.features["sum"]) and a.calls == b.calls
    alone = single_pass(technique, cut[0].request.with_(outputs=False), ("sum",))
    assert torch.equal(alone.prediction, cut[0].response.prediction)


def test_cut_answers_are_shared_and_never_stand_in_for_whole_ones() -> None:
    backbone = ClosedForm()
    memo = Memo(backbone)
    settings: dict[str, Any] = {"timesteps": (1,), "layers": ("sum",), "backbone": backbone}

    def passes(outputs: bool) -> tuple[list[Passed], int]:
        with counted(backbone) as count:
            found = list(stream(plan(**settings, outputs=outputs), memo=memo))
        return found, count.rows

    first, rows = passes(outputs=False)
    again, saved = passes(outputs=False)
    whole, made = passes(outputs=True)
    served, none = passes(outputs=False)
    assert (rows, saved, made, none) == (12, 0, 12, 0)
    for a, b, c, d in zip(first, again, whole, served, strict=True):
        assert isinstance(c.response, Response) and not isinstance(c.response, CutResponse)
        assert a.calls == b.calls == c.calls == d.calls == 1
        for other in (b, c, d):
            assert torch.equal(a.response.features["sum"], other.response.features["sum"])
