"""E-TSDM's K(t): by hand, for both readings of it, and what a shared condition does to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gate.metric import Pass, implied_eps
from gate.metrics.lipschitz import Lipschitz, neighbour
from gate.metrics.lipschitz_features import LipschitzFeatures
from gate.passes import single_pass
from gate.registry import create_technique
from gate.technique import Technique
from gate.testing import check_metric


def seen(
    tiny: Any, scenes: Any, t: int, technique: Technique, layers: tuple[str, ...] = ("up1", "up3")
) -> Pass:
    request = tiny.batch(scenes[:3].samples).request(t, 0)
    with torch.no_grad():
        response = single_pass(technique, request, layers)
    return Pass(request, response, {}, {}, lambda asked: single_pass(technique, asked, layers))


def test_it_is_the_length_of_the_difference_of_two_predictions(tiny: Any, scenes: Any) -> None:
    with torch.no_grad():
        one = seen(tiny, scenes, 50, Technique())
        other = tiny.denoise(one.request.at(51), ("up1", "up3"))
        found, of_features = Lipschitz().measure(one), LipschitzFeatures().measure(one)
    by_hand = (one.response.prediction - other.prediction).flatten(1).norm(dim=1)
    torch.testing.assert_close(found, by_hand, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(
        implied_eps(one.request, one.response), one.response.prediction, rtol=1e-3, atol=1e-3
    )
    shares = [
        (one.response.features[k] - other.features[k]).flatten(1).norm(dim=1)
        / one.response.features[k].flatten(1).norm(dim=1)
        for k in ("up1", "up3")
    ]
    torch.testing.assert_close(of_features, torch.stack(shares).mean(0), rtol=1e-4, atol=1e-6)


def test_the_last_timestep_looks_back(tiny: Any, scenes: Any) -> None:
    batch = tiny.batch(scenes[:2].samples)
    assert neighbour(batch.request(999, 0)).t.tolist() == [998, 998]
    assert neighbour(batch.request(50, 0)).t.tolist() == [51, 51]


def test_a_shared_condition_takes_its_own_part_of_the_change_away(tiny: Any, scenes: Any) -> None:
    """Within an interval the condition does not move, so what is left is the change of x_t alone."""
    shared = create_technique("shared-timestep")
    with torch.no_grad():
        one = seen(tiny, scenes, 50, shared)
        told = {int(t) for asked in (one.request, neighbour(one.request)) for t in shared.shared(asked.t)}  # type: ignore[attr-defined]
        still = one.request.at(51).with_(t_condition=torch.full((3,), 40))
        by_hand = (one.response.prediction - tiny.denoise(still).prediction).flatten(1).norm(dim=1)
        torch.testing.assert_close(Lipschitz().measure(one), by_hand, rtol=2e-3, atol=1e-4)
    assert told == {40}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lipschitz", "lipschitz-features"])
def test_it_keeps_the_contract(name: str, tiny: Any) -> None:
    report = check_metric(name, tiny)
    assert report.ok, str(report)
