"""The technique contract: fit, condition, attach, start, denoise; all optional, the defaults do nothing.

A technique is a dataclass: its fields are its settings, its class attributes are the facts that the command line,
the ranker and the docs read. This module imports no torch, so that listing techniques is instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gate.errors import UnsuitableError, UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Conditioning, Request, Response
    from gate.sample import SampleSet

    CallNext = Callable[[Request], Response]

Need = Literal["weights", "captions", "labels", "class-names", "training"]


@dataclass(frozen=True)
class Cost:
    """Denoiser calls. per_image: once per image, whatever follows; per_pass: for each (timestep, seed);
    start: how many of per_pass `start` spends, before the denoiser is wrapped."""

    per_image: float = 0.0
    per_pass: float = 1.0
    start: float = 0.0

    @property
    def total(self) -> float:
        """Calls to extract one image's features once."""
        return self.per_image + self.per_pass


@dataclass(kw_only=True)
class Technique:
    """A generation technique. Subclass it as a dataclass; override what it does.

    Facts: `name` as on the command line; `summary`, one line; `source`, the paper; `needs`; `families` of backbone it
    serves, or traits of them ("text": any that takes prompts; "unconditional"); `leak`, why its image or latent carries
    the input's own pixels ("" = it does not); `control`, whether it is a negative control; `replaces_latent`, whether
    it starts from another latent (two such do not compose); `seedless`, whether the noise seed plays no part, so that
    one seed is measured for all of them; `neutral`, settings under which it equals vanilla bit for bit (None = it has
    none); `variants`, further names with their settings; `compositions`, names with `+` that belong to `all`;
    `listed`, whether it is in `all` itself.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()
    families: ClassVar[frozenset[str]] = frozenset({"unet"})
    leak: ClassVar[str] = ""
    control: ClassVar[bool] = False
    replaces_latent: ClassVar[bool] = False
    seedless: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, Any] | None] = None
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    compositions: ClassVar[tuple[str, ...]] = ()
    listed: ClassVar[bool] = True

    @property
    def attaches(self) -> bool:
        """Whether it may change the backbone for a while: it has an `attach` of its own."""
        return type(self).attach is not Technique.attach

    @property
    def cost(self) -> Cost:
        """Declared denoiser calls; `gate.testing.check_technique` counts them."""
        return Cost()

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting and its value."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        """Raise `UnsuitableError` where this backbone or these samples cannot be served."""
        vanilla = type(self) is Technique  # the backbone as it is: served by every one
        if not vanilla and self.families.isdisjoint({backbone.family, *getattr(backbone, "traits", ())}):
            raise UnsuitableError(
                f"{self.name} serves {', '.join(sorted(self.families))} backbones, "
                f"{backbone.name} is {backbone.family}."
            )
        if "captions" in self.needs and not samples.has_captions:
            raise UnsuitableError(
                f"{self.name} needs a caption for every image.",
                "Add NAME.txt beside each image, or captions.csv.",
            )
        if "labels" in self.needs and not samples.has_labels:
            raise UnsuitableError(f"{self.name} needs labels.", "Sort the images into a folder per class.")
        if "class-names" in self.needs and len(samples.classes) < 2:
            raise UnsuitableError(
                f"{self.name} chooses among class names.",
                "Sort the images into a folder per class, or set candidates.",
            )

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        """Learn something from a few images; the time it takes is recorded."""

    def state(self) -> dict[str, Tensor]:
        """What `fit` learned, as tensors."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def attach(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Change the backbone for a while (weights, hooks, attention processors) and restore it bit for bit."""
        return contextlib.nullcontext()

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        """The conditioning of these samples; called once per batch, before all passes."""
        return conditioning

    def start(self, request: Request) -> Request:
        """Another latent to start from; called for noised requests only."""
        return request

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        """Wrap the denoiser: call it once, several times, elsewhere on the noise axis, with gradients."""
        return call_next(request)


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
        facts["control"] = any(p.control for p in self.parts)
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


def descend(request: Request, lead: int, steps: int, predict: Callable[[Request], Tensor]) -> Request:
    """The request at a latent that was reached by denoising: from x_{t + lead}, made of the same x0 and noise, down to
    t by `steps` deterministic DDIM steps of predict(request), (b, c, h, w). t + lead stays within the schedule."""
    schedule = request.batch.backbone.schedule
    top = (request.t + lead).clamp(max=len(schedule) - 1)
    here = request.at(top).with_(features=False)
    for k in range(1, steps + 1):
        after = top - (top - request.t) * k // steps
        here = here.moved(schedule.ddim_step(predict(here), here.x_t, here.t, after), after)
    return here.with_(t_condition=request.t_condition, features=request.features)


def _wrapped(part: Technique, call_next: CallNext) -> CallNext:
    return lambda request: part.denoise(request, call_next)


def with_settings(cls: type[Technique], name: str, settings: Mapping[str, Any]) -> Technique:
    """cls(**settings) under the name `name`, with a clear error for an unknown or impossible setting."""
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    for key in settings:
        if key not in known:
            raise unknown_name(
                f"setting of {name}", key, known, listing=f"gate describe {name.partition('[')[0]}"
            )
    try:
        technique = cls(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be set up with {dict(settings)}: {error}") from error
    if name != cls.name:
        vars(technique)["name"] = name
    return technique


@dataclass
class Memo:
    """Predictions of calls that techniques of one screening share (`Request.shared`), by their very inputs.

    Who uses one is charged as if it had made the call: its rows count, and `saved` adds up the seconds that it took.
    """

    answers: dict[bytes, tuple[Response, float]] = field(default_factory=dict)
    saved: float = 0.0

    def answer(self, request: Request, make: Callable[[], Response]) -> Response:
        """The kept response to an equal request; else make it, and keep it."""
        key = _digest(request)
        if key not in self.answers:
            began = time.perf_counter()
            response = make()
            self.answers[key] = (response, time.perf_counter() - began)
            return response
        response, seconds = self.answers[key]
        self.saved += seconds
        request.batch.backbone.calls += len(request.x_t)
        return response


def _digest(request: Request) -> bytes:
    """Of everything that the denoiser is given."""
    given = request.conditioning
    tensors = (request.x_t, request.t, request.t_condition, given.prompt_embeds, given.pooled, given.mask)
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (*tensors, given.time_ids, given.image_embeds):
        if tensor is not None:
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def run(
    technique: Technique,
    request: Request,
    layers: Sequence[str],
    *,
    known: Sequence[tuple[Request, Response]] = (),
    memo: Memo | None = None,
) -> Response:
    """One pass through a technique that is attached: start, then denoise around the backbone's own call.

    The reference at t = 0 and the later states of a trajectory never start elsewhere. A call repeated on the very same
    clean or sampled request is answered from the first: an ensemble of one state is that state.
    known: requests whose answers are there already. memo: keeps shared calls from one technique to the next; never
    those of a technique that may change the backbone, or that carry residuals.
    """
    backbone = request.batch.backbone
    seen = list(known)

    def call(inner: Request) -> Response:
        for asked, answer in seen:
            if asked is inner:
                return answer
        wanted = layers if inner.features else ()
        if (
            memo is not None
            and inner.shared
            and not (inner.features or inner.residuals or technique.attaches)
        ):
            response = memo.answer(inner, lambda: backbone.denoise(inner, wanted))
        else:
            response = backbone.denoise(inner, wanted)
        if inner.origin != "noised":
            seen.append((inner, response))
        return response

    if request.origin == "noised":
        request = technique.start(request)
    return technique.denoise(request, call)
