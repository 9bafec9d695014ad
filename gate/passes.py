"""The one loop over passes: a plan of techniques' calls, and the stream of what they give.

A screening folds the stream, the contract's check compares two, `extract` keeps its features. Whoever wants another
pass adds it here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gate.request import Batch, Conditioning, Request, Response

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet
    from gate.technique import Technique

MEMO_BYTES = 256 << 20  # of predictions that techniques share; what does not fit is computed again
UNREAD = frozenset({"eps", "batch", "seed", "origin", "features", "shared"})  # by a denoiser, of a request


@dataclass(frozen=True, eq=False)
class Plan:
    """Technique x samples x timesteps x seeds x layers: which passes are made, and over which samples.

    technique: fitted. rows: of the samples, those that this plan is about; a control may borrow from the others all
    the same. x0: (n, c, h, w), their latents, encoded batch by batch where None. clean: whether each batch begins with
    the pass at t = 0 through the technique. pairs: (timestep, seed), where not all combinations are wanted. batch_size
    and the order of samples change no result.
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

    def batch(self, rows: slice) -> Batch:
        """These samples with their latents and the neutral conditioning."""
        x0 = None if self.x0 is None else self.x0[rows]
        part, names = self.samples[rows].samples, self.samples.classes
        return self.backbone.batch(part, x0, everyone=self.samples, class_names=names)


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


@dataclass
class Memo:
    """Predictions of calls that techniques of one screening share (`Request.shared`), by their very inputs.

    Who uses one is charged as if it had made the call: `rows` and `seconds` add up what was saved. limit: bytes of
    predictions that are kept; a call beyond it is made again by everybody.
    """

    limit: int = MEMO_BYTES
    rows: int = 0
    seconds: float = 0.0
    held: int = 0
    answers: dict[bytes, tuple[Tensor, float]] = field(default_factory=dict)

    def answer(self, request: Request, make: Callable[[], Response]) -> Response:
        """The kept response to an equal request; else make it, and keep it."""
        key = digest(request)
        if key in self.answers:
            prediction, seconds = self.answers[key]
            self.rows += len(prediction)
            self.seconds += seconds
            schedule = request.batch.backbone.schedule
            return Response(prediction, schedule.x0_from(prediction, request.x_t, request.t))
        began = time.perf_counter()
        response = make()
        size = response.prediction.nbytes
        if self.held + size <= self.limit:
            self.answers[key] = response.prediction, time.perf_counter() - began
            self.held += size
        return response


def digest(request: Request) -> bytes:
    """Of everything that the denoiser is given: whatever field a request or its conditioning has, now or later."""
    made = hashlib.blake2b(digest_size=16)
    _feed(
        made, {f.name: getattr(request, f.name) for f in dataclasses.fields(request) if f.name not in UNREAD}
    )
    return made.digest()


def _feed(made: Any, value: Any) -> None:
    """Whatever lies in a request, with its structure. Raises TypeError for what cannot be told apart by its bytes."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        made.update(f"{data.dtype}{tuple(data.shape)}".encode())
        made.update(data.flatten().view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(made, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        for key in sorted(value):
            made.update(f"{key}=".encode())
            _feed(made, value[key])
    elif isinstance(value, (tuple, list)):
        made.update(f"[{len(value)}".encode())
        for item in value:
            _feed(made, item)
    elif value is None or isinstance(value, (str, int, float, bool)):
        made.update(f"{value!r};".encode())
    else:
        raise TypeError(
            f"a request that is shared holds a {type(value).__name__}, which has no bytes to compare"
        )


@contextlib.contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """Counts the rows that go through the denoiser itself, whoever calls it: the one number of the list."""
    count = [0]

    def rows(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count[0] += len(args[0] if args else next(iter(kwargs.values())))

    handle = backbone.denoiser.register_forward_pre_hook(rows, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


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
    technique, backbone, memo = plan.technique, plan.backbone, memo or Memo(limit=0)
    with technique.attach(backbone), counted(backbone) as count:
        for rows, batch in plan.batches():
            meter = _Meter(count, memo, len(batch))
            conditioning = technique.condition(batch.neutral, batch)
            conditioned = meter.read()
            for request in _requests(plan, batch, conditioning):
                plain = conditioning is batch.neutral and not technique.attaches
                known = (
                    [(request, reference(rows))] if reference and plain and request.origin == "clean" else []
                )
                meter = _Meter(count, memo, len(batch))
                response = single_pass(technique, request, plan.layers, known=known, memo=memo)
                yield Passed(rows, request, response, *meter.read(), conditioned)


def _requests(plan: Plan, batch: Batch, conditioning: Conditioning) -> Iterator[Request]:
    if plan.clean:
        yield batch.clean_request(conditioning)
    for t, seed in plan.cells:
        yield batch.request(t, seed, conditioning)


class _Meter:
    """Calls per image and seconds since it was made, with what the memo saved."""

    def __init__(self, count: list[int], memo: Memo, images: int) -> None:
        self.count, self.memo, self.images = count, memo, images
        self.before = self._now()

    def _now(self) -> tuple[int, float]:
        return self.count[0] + self.memo.rows, time.perf_counter() + self.memo.seconds

    def read(self) -> tuple[float, float]:
        rows, seconds = self._now()
        return (rows - self.before[0]) / self.images, seconds - self.before[1]


def single_pass(
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
        plain = inner.shared and not (inner.features or inner.residuals or technique.attaches)
        if memo is not None and plain:
            response = memo.answer(inner, lambda: backbone.denoise(inner, wanted))
        else:
            response = backbone.denoise(inner, wanted)
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
    memo: Memo | None = None,
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
        return single_pass(technique, state.with_(x_t=x, t=t, t_condition=t), (), memo=memo).prediction

    x0 = backbone.schedule.ddim_sample(request.x_t, top, steps, predict)
    return backbone.decode(x0).cpu()
