"""A pass that two metrics ask for is made once, and answers them as if each had asked alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gate.calls import counted
from gate.metrics.lipschitz import neighbour
from gate.passes import Plan, stream
from gate.screening.measured import Tally
from gate.technique import Technique


@pytest.fixture
def tally(tiny: Any, scenes: Any) -> Tally:
    plan = Plan(tiny, Technique(), scenes[:2], (50,), (0,), ("mid",), 2)
    bench: Any = SimpleNamespace(
        config=SimpleNamespace(seeds=1, image_samples=0), samples=scenes, comparing=lambda _: ()
    )
    return Tally(bench, plan)


def test_the_second_who_asks_is_answered_from_the_first(tally: Tally, tiny: Any) -> None:
    [passed] = stream(tally.plan)
    first, other = (tally._seen(passed, {"second-pass"}) for _ in range(2))
    assert first.again is not None and other.again is not None
    with torch.no_grad(), counted(tiny) as count:
        one = first.again(neighbour(first.request))
        two = other.again(neighbour(other.request))
        assert count.rows == 2, "one call of two images"
        assert torch.equal(one.prediction, two.prediction) and two.features.keys() == {"mid"}
        further = other.again(first.request.at(passed.request.t + 2))
        assert count.rows == 4 and not torch.equal(further.prediction, two.prediction)
        blind = other.again(neighbour(other.request).with_(features=False))
        assert count.rows == 6 and not blind.features


def test_who_takes_gradients_gets_a_call_of_its_own(tally: Tally, tiny: Any) -> None:
    [passed] = stream(tally.plan)
    seen = tally._seen(passed, {"gradients", "second-pass"})
    assert seen.again is not None
    with counted(tiny) as count:
        for _ in range(2):
            seen.again(neighbour(seen.request))
        assert count.rows == 4
