"""Several techniques as one: `a+b` is a technique."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gate.errors import UsageError
from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Conditioning, Request, Response
    from gate.sample import SampleSet
    from gate.technique import CallNext


@dataclass(kw_only=True)
class Composition(Technique):
    """Several techniques as one, `a+b`: conditionings chain left to right, the leftmost wraps the others' calls."""

    parts: tuple[Technique, ...] = ()

    def __post_init__(self) -> None:
        replacing = [p.name for p in self.parts if p.replaces_latent]
        if len(replacing) > 1:
            raise UsageError(
                f"{' and '.join(replacing)} both replace the latent and cannot be combined; choose one."
            )
        names = [p.name for p in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"{name} is named twice in {'+'.join(names)}; name it once.")
        facts = vars(self)
        facts["name"] = "+".join(names)
        facts["summary"] = " and ".join(p.summary.rstrip(".") for p in self.parts) + "."
        facts["source"] = "; ".join(dict.fromkeys(p.source for p in self.parts if p.source))
        facts["needs"] = frozenset().union(*(p.needs for p in self.parts))
        facts["families"] = common_families([p.families for p in self.parts])
        facts["leak"] = "; ".join(p.leak for p in self.parts if p.leak)
        facts["negative_control"] = any(p.negative_control for p in self.parts)
        true = [p.control_of if p.negative_control else p.name for p in self.parts]
        facts["control_of"] = "+".join(filter(None, true)) if facts["negative_control"] else ""
        facts["replaces_latent"] = bool(replacing)
        facts["seedless"] = any(p.seedless for p in self.parts)

    @property
    def attaches(self) -> bool:
        return any(part.attaches for part in self.parts)

    @property
    def cost(self) -> Cost:
        """Calls multiply where a wrapper calls what it wraps; starts, and what runs once per image, add up."""
        costs = [part.cost for part in self.parts]
        start = sum(c.start for c in costs)
        wrapped = math.prod(c.per_pass - c.start for c in costs)
        return Cost(sum(c.per_image for c in costs), start + wrapped, start)

    @property
    def settings(self) -> dict[str, Any]:
        return {p.name: p.settings for p in self.parts}

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        for part in self.parts:
            part.check(backbone, samples)

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        for part in self.parts:
            part.fit(backbone, samples)

    def state(self) -> dict[str, Tensor]:
        return {f"{p.name}/{key}": value for p in self.parts for key, value in p.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for part in self.parts:
            head = f"{part.name}/"
            part.load_state({k[len(head) :]: v for k, v in state.items() if k.startswith(head)})

    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.attach(backbone))
            yield

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        for part in self.parts:
            conditioning = part.condition(conditioning, batch)
        return conditioning

    def start(self, request: Request) -> Request:
        for part in self.parts:
            request = part.start(request)
        return request

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        for part in reversed(self.parts):
            call_next = _wrapped(part, call_next)
        return call_next(request)


def common_families(served: Sequence[frozenset[str]]) -> frozenset[str]:
    """What several techniques serve together; "text" stands for every family that is not "unconditional"."""
    common = served[0]
    for other in served[1:]:
        both = common & other
        if "text" in common:
            both |= other - {"unconditional"}
        if "text" in other:
            both |= common - {"unconditional"}
        common = both
    return common


def _wrapped(part: Technique, call_next: CallNext) -> CallNext:
    return lambda request: part.denoise(request, call_next)
