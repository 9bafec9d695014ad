"""The contract itself: composition, cost, settings, one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from gate.backbone import Backbone
from gate.calls import counted
from gate.composition import Composition
from gate.errors import UnsuitableError, UsageError
from gate.passes import single_pass
from gate.registry import with_settings
from gate.request import Batch, Conditioning, Request, Response
from gate.sample import SampleSet
from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from gate.technique import CallNext


@dataclass(kw_only=True)
class Twice(Technique):
    """Calls twice."""

    name = "twice"
    summary = "Call twice."
    source = "one"

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=2)

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        call_next(request.with_(features=False))
        return call_next(request)


@dataclass(kw_only=True)
class Starter(Technique):
    """Spends five calls before the pass and three per image; its latent is zero."""

    name = "starter"
    summary = "Start at zero."
    source = "two"
    replaces_latent = True
    leak = "none really"
    negative_control = True

    @property
    def cost(self) -> Cost:
        return Cost(per_image=3, per_pass=6, start=5)

    def start(self, request: Request) -> Request:
        return request.moved(torch.zeros_like(request.x_t), request.t)


@dataclass(kw_only=True)
class Note(Technique):
    """Writes down when it is entered and left, and appends to the prompts."""

    name = "note"
    summary = "Take a note."
    families: ClassVar[frozenset[str]] = frozenset({"unet", "transformer"})

    log: tuple[list[str], ...] = ()
    mark: str = "a"

    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        self.log[0].append(f"+{self.mark}")
        try:
            yield
        finally:
            self.log[0].append(f"-{self.mark}")

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        return conditioning.replace(prompts=tuple(p + self.mark for p in conditioning.prompts))

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        self.log[0].append(self.mark)
        return call_next(request)

    def state(self) -> dict[str, torch.Tensor]:
        return {"mark": torch.tensor([ord(self.mark)])}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.mark = chr(int(state["mark"]))


def named(name: str, **settings: Any) -> Note:
    made = with_settings(Note, name, settings)
    assert isinstance(made, Note)
    return made


@pytest.fixture(scope="module")
def batch(tiny: Backbone, scenes: SampleSet) -> Batch:
    return tiny.batch(scenes[:2].samples)


def test_calls_multiply_and_starts_add_up() -> None:
    cost = Composition(parts=(Twice(), Starter(), with_settings(Twice, "thrice", {}))).cost
    assert cost == Cost(per_image=3, per_pass=5 + 2 * 1 * 2, start=5)
    assert cost.total == 12
    assert Composition(parts=(Starter(),)).cost == Starter().cost


def test_a_composition_states_the_facts_of_its_parts() -> None:
    both = Composition(parts=(Twice(), Starter()))
    assert (both.name, both.summary) == ("twice+starter", "Call twice and Start at zero.")
    assert (both.source, both.leak, both.negative_control, both.replaces_latent) == (
        "one; two",
        "none really",
        True,
        True,
    )
    assert both.families == {"unet"} and both.settings == {"twice": {}, "starter": {}}


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(UsageError, match="both replace the latent"):
        Composition(parts=(Starter(), with_settings(Starter, "other", {})))
    with pytest.raises(UsageError, match="named twice"):
        Composition(parts=(Twice(), Twice()))


def test_order_left_to_right_and_the_leftmost_wraps(batch: Batch) -> None:
    log: list[str] = []
    both = Composition(parts=(named("a", log=(log,)), named("b", log=(log,), mark="b")))
    assert both.condition(batch.neutral, batch).prompts == ("ab",) * 2
    with torch.no_grad(), both.attach(batch.backbone):
        single_pass(both, batch.request(50, 0), ())
    assert log == ["+a", "+b", "a", "b", "-b", "-a"]


def test_state_of_a_composition_goes_back_to_its_parts() -> None:
    both = Composition(parts=(named("a", log=([],), mark="x"), named("b", log=([],), mark="y")))
    other = Composition(parts=(named("a", log=([],)), named("b", log=([],))))
    assert set(both.state()) == {"a/mark", "b/mark"}
    other.load_state(both.state())
    assert [p.mark for p in other.parts if isinstance(p, Note)] == ["x", "y"]


def test_settings_that_are_unknown_or_impossible() -> None:
    with pytest.raises(UsageError, match="Did you mean 'mark'"):
        with_settings(Note, "note", {"mrak": "a"})
    assert with_settings(Note, "note", {"mark": "b"}).settings["mark"] == "b"


def test_a_pass_starts_elsewhere_only_where_there_is_noise(batch: Batch) -> None:
    with torch.no_grad():
        noised = single_pass(Starter(), batch.request(50, 0), ("mid",))
        zero = batch.backbone.denoise(batch.request(50, 0).with_(x_t=torch.zeros_like(batch.x0)), ("mid",))
        clean = single_pass(Starter(), batch.clean_request(), ("mid",))
        plain = batch.backbone.denoise(batch.clean_request(), ("mid",))
    assert torch.equal(noised.features["mid"], zero.features["mid"])
    assert torch.equal(clean.features["mid"], plain.features["mid"])


def test_a_repeated_call_on_the_reference_costs_one(batch: Batch) -> None:
    class Again(Twice):
        def denoise(self, request: Request, call_next: CallNext) -> Response:
            call_next(request)
            return call_next(request)

    with torch.no_grad(), counted(batch.backbone) as count:
        single_pass(Again(), batch.clean_request(), ())
        assert count.rows == 2  # two rows, once
        single_pass(Again(), batch.request(50, 0), ())
        assert count.rows == 6


def test_a_family_that_is_not_served_is_refused(scenes: SampleSet) -> None:
    class Elsewhere:
        family, name = "transformer", "a transformer"

    with pytest.raises(UnsuitableError, match="twice serves unet backbones"):
        Twice().check(Elsewhere(), scenes)  # type: ignore[arg-type]
    Note(log=([],)).check(Elsewhere(), scenes)  # type: ignore[arg-type]
