"""Requests: what may be drawn again, and that rows stay independent."""

from __future__ import annotations

import torch

from gate.backbone import Backbone
from gate.request import Conditioning, Response, mean_response
from gate.sample import SampleSet


def test_at_keeps_x0_and_eps(tiny: Backbone, scenes: SampleSet) -> None:
    batch = tiny.batch(scenes[:2].samples)
    request = batch.request(50, 0)
    moved = request.at(300)
    assert moved.t.tolist() == [300, 300] and moved.t_condition.tolist() == [300, 300]
    assert torch.equal(moved.eps, request.eps)
    implied = tiny.schedule.implied_eps(moved.x_t, batch.x0, moved.t)
    torch.testing.assert_close(implied, request.eps, rtol=1e-4, atol=1e-4)


def test_renoised_draws_the_batch_noise_of_that_seed(tiny: Backbone, scenes: SampleSet) -> None:
    batch = tiny.batch(scenes[:2].samples)
    again = batch.request(50, 0).renoised(3)
    assert torch.equal(again.x_t, batch.request(50, 3).x_t)


def test_clean_and_sampled_requests_are_never_redrawn(tiny: Backbone, scenes: SampleSet) -> None:
    batch = tiny.batch(scenes[:2].samples)
    clean = batch.clean_request()
    assert clean.at(300) is clean and clean.renoised(1) is clean
    assert torch.equal(clean.x_t, batch.x0) and clean.t.tolist() == [0, 0]
    sampled = batch.request(500, 0).with_(origin="sampled")
    assert sampled.renoised(1) is sampled


def test_noise_of_a_sample_does_not_depend_on_its_batch(tiny: Backbone, scenes: SampleSet) -> None:
    together = tiny.batch(scenes[:4].samples).request(50, 0).eps
    alone = tiny.batch(scenes[2:3].samples).request(50, 0).eps
    assert torch.equal(together[2:3], alone)


def test_rows_and_join_are_inverse(tiny: Backbone) -> None:
    conditioning = tiny.encode_prompts(["a cat", "a dog", ""])
    parts = [conditioning.rows([i]) for i in range(3)]
    joined = Conditioning.join(parts)
    assert torch.equal(joined.prompt_embeds, conditioning.prompt_embeds)
    assert joined.prompts == ("a cat", "a dog", "")


def test_the_mean_of_one_response_is_that_response() -> None:
    one = Response(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), {"a": torch.ones(1, 1, 2, 2)})
    assert mean_response([one]) is one
    three = Response(3 * torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), {"a": 3 * torch.ones(1, 1, 2, 2)})
    assert float(mean_response([one, three]).features["a"].mean()) == 2.0
