"""The one loop over passes: a plan of techniques' calls, and the stream of what they give.

A screening folds the stream, the contract's check compares two, `extract` keeps its features. Whoever wants another
pass adds it here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gate.calls import Counter, Memo, counted
from gate.errors import PluginError
from gate.request import Batch, Conditioning, Request, Response, WholeNeeded
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet


@dataclass(frozen=True, eq=False)
class Plan:
    """Technique x samples x timesteps x seeds x layers: which passes are made, and over which samples.

    technique: fitted. rows: of the samples, those that this plan is about; a control may borrow from the others all
    the same. x0: (n, c, h, w), their latents, encoded batch by batch where None. clean: whether each batch begins with
    the pass at t = 0 through the technique. outputs: whether predictions are wanted; where they are not, forwards stop
    after the last layer, unless the technique asks for a prediction. pairs: (timestep, seed), where not all
    combinations are wanted. batch_size and the order of samples change no result.
    """

    backbone: Backbone
    technique: Technique
    samples: SampleSet
    timesteps: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    layers: tuple[str, ...] = ()
    batch_size: int = 8
    x0: Tensor | None = None
    clean: bool = False
    outputs: bool = True
    rows: slice = field(default_factory=lambda: slice(None))
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """(timestep, seed) of each noised pass, in order."""
        return self.pairs or tuple(itertools.product(self.timesteps, self.seeds))

    def sliced(self, rows: slice) -> Plan:
        """The same plan for some of its samples. rows: start and stop among this plan's own."""
        own = range(len(self.samples))[self.rows][rows]
        return dataclasses.replace(self, rows=slice(own.start, own.stop))

    def batches(self) -> Iterator[tuple[slice, Batch]]:
        """The rows of each batch, and the batch, in order."""
        start, stop, _ = self.rows.indices(len(self.samples))
        for i in range(start, stop, self.batch_size):
            rows = slice(i, min(i + self.batch_size, stop))
            yield rows, self.batch(rows)

    @functools.cached_property
    def visible(self) -> SampleSet:
        """The samples as the technique may see them."""
        return self.technique.visible(self.samples)

    def batch(self, rows: slice) -> Batch:
        """These samples with their latents and the neutral conditioning."""
        x0 = None if self.x0 is None else self.x0[rows]
        part, names = self.visible[rows].samples, self.samples.classes
        labels = [sample.label for sample in self.samples[rows].samples]
        return self.backbone.batch(part, x0, everyone=self.visible, class_names=names, labels=labels)


@dataclass(frozen=True, eq=False)
class Passed:
    """One pass of one batch: what was asked, what came of it, what it took.

    rows: the batch's place among the plan's samples. request: before the technique saw it; its origin is "clean" for
    the reference. calls: of the denoiser per image, counted at the denoiser itself; seconds: in all. conditioned: the
    same two for the batch's conditioning, which all its passes share.
    """

    rows: slice
    request: Request
    response: Response
    calls: float
    seconds: float
    conditioned: tuple[float, float]

    @property
    def is_reference(self) -> bool:
        """Whether this is the pass at t = 0 without noise."""
        return self.request.origin == "clean"


@torch.no_grad()
def stream(
    plan: Plan, *, memo: Memo | None = None, reference: Callable[[slice], Response] | None = None
) -> Generator[Passed, None, None]:
    """Every pass of a plan, batch by batch: conditioning once, the clean pass where it is wanted, then the noised ones.

    The technique is attached while the stream is open; close it (`contextlib.closing`) where it may not be read to its
    end. Gradients are off around a pass, as everywhere in inference; a technique that needs some takes them under
    `torch.enable_grad`. memo: of calls that techniques share. reference: the plain backbone's clean pass of some rows,
    where it was made already; a technique that changes neither backbone nor conditioning is answered from it.
    """
    technique, backbone = plan.technique, plan.backbone
    if technique.attaches:
        memo = None  # another denoiser's answers
    serving = memo.serving(backbone) if memo else contextlib.nullcontext()
    outputs = plan.outputs
    with technique.attach(backbone), counted(backbone) as count, serving:
        for rows, batch in plan.batches():
            meter = _Meter(count, memo, len(batch))
            conditioning = technique.condition(batch.neutral, batch)
            conditioned = meter.read()
            for asked in _requests(plan, batch, conditioning):
                request = asked if outputs else asked.with_(outputs=False)
                plain = conditioning is batch.neutral and not technique.attaches
                answer = reference(rows) if reference and plain and request.origin == "clean" else None
                meter = _Meter(count, memo, len(batch))
                given = _versions(request)
                try:
                    response = _pass(technique, request, plan.layers, answer, memo)
                except WholeNeeded:  # it will ask again in every pass
                    outputs, request, meter = True, asked, _Meter(count, memo, len(batch))
                    response = _pass(technique, request, plan.layers, answer, memo)
                if _versions(request) != given:
                    raise PluginError(
                        f"{technique.name} wrote into the latents or the noise that it was given; change a copy "
                        "(`request.with_`)."
                    )
                yield Passed(rows, request, response, *meter.read(), conditioned)


def _versions(request: Request) -> tuple[int, ...]:
    """Grow where something is written in place."""
    held = (request.x_t, request.t, request.t_condition, request.eps, request.batch.x0)
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in held)


def _requests(plan: Plan, batch: Batch, conditioning: Conditioning) -> Iterator[Request]:
    if plan.clean:
        yield batch.clean_request(conditioning)
    for t, seed in plan.cells:
        yield batch.request(t, seed, conditioning)


class _Meter:
    """Calls per image and seconds since it was made, with what the memo saved."""

    def __init__(self, count: Counter, memo: Memo | None, images: int) -> None:
        self.count, self.memo, self.images = count, memo, images
        self.before = self._now()

    def _now(self) -> tuple[int, float]:
        rows, seconds = (self.memo.rows, self.memo.seconds) if self.memo else (0, 0.0)
        return self.count.rows + rows, time.perf_counter() + seconds

    def read(self) -> tuple[float, float]:
        rows, seconds = self._now()
        return (rows - self.before[0]) / self.images, seconds - self.before[1]


def single_pass(
    technique: Technique,
    request: Request,
    layers: Sequence[str],
    *,
    known: Response | None = None,
) -> Response:
    """One pass through a technique that is attached: start, then denoise around the backbone's own call.

    The reference at t = 0 and the later states of a trajectory never start elsewhere. A call repeated on the very same
    clean or sampled request is answered from the first: an ensemble of one state is that state.
    known: the answer to this very request, where it is there already; a technique that looks at answers gets a copy.
    """
    try:
        return _pass(technique, request, layers, known)
    except WholeNeeded:
        return _pass(technique, request.with_(outputs=True), layers, known)


def _pass(
    technique: Technique,
    request: Request,
    layers: Sequence[str],
    known: Response | None,
    memo: Memo | None = None,
) -> Response:
    """As `single_pass`. Raises WholeNeeded where the technique asks for a prediction that the request does not want."""
    if memo:
        memo.own = request
    backbone = request.batch.backbone
    looks = type(technique).denoise is not Technique.denoise
    seen = [] if known is None else [(request, known.copy() if looks else known)]

    def call(inner: Request) -> Response:
        for asked, answer in seen:
            if asked is inner:
                return answer
        response = backbone.denoise(inner, layers if inner.features else ())
        if inner.origin != "noised":
            seen.append((inner, response))
        return response

    if request.origin == "noised":
        request = technique.start(request)
    return technique.denoise(request, call)


@torch.no_grad()
def reconstruct(
    technique: Technique,
    batch: Batch,
    conditioning: Conditioning,
    *,
    strength: float,
    steps: int,
    seed: int,
) -> Tensor | None:
    """img2img at high strength by deterministic DDIM through an attached technique (paper, section 5.1).

    strength: share of the schedule that is run back, (0, 1]. Returns images, (b, 3, H, W) in [0, 1] on the CPU; None
    where the technique starts from the clean latent: no noise went in, so nothing is generated.
    """
    backbone = batch.backbone
    top = max(1, math.ceil(strength * len(backbone.schedule)) - 1)
    request = technique.start(batch.request(top, seed, conditioning))
    if request.origin == "clean":
        return None
    state = request.with_(origin="sampled", features=False)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return single_pass(technique, state.with_(x_t=x, t=t, t_condition=t), ()).prediction

    x0 = backbone.schedule.ddim_sample(request.x_t, top, steps, predict)
    return backbone.decode(x0).cpu()
