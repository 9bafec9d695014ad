"""What a pipeline does between a latent and its denoiser, read off markers: packing, scaling, time, the way back."""

# long: one rehearsal and everything that is read off it
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gate.backbones.recorded.call import Hole, Path, Told, leaves, replaced, told_of
from gate.backbones.recorded.marker import Marker
from gate.backbones.recorded.pipeline import call_options
from gate.backbones.recorded.rehearsal import Performance, Turn, perform
from gate.errors import ConfigurationError

GUIDANCE = (1.0, 0.0)  # what may mean that a pipeline does not guide, tried in this order


@dataclass(frozen=True)
class Time:
    """One argument that follows the scheduler's t: alpha + beta t, by the arithmetic that gives the pipeline's bits."""

    path: Path
    alpha: float
    beta: float
    form: int
    like: Any

    def __call__(self, t: Tensor) -> Any:
        """The argument at t, 0-dimensional."""
        value = FORMS[self.form](t, self.alpha, self.beta)
        if isinstance(self.like, Tensor):
            return value.to(self.like).expand(self.like.shape).clone()
        return type(self.like)(value.item())


FORMS: tuple[Callable[[Tensor, float, float], Tensor], ...] = (
    lambda t, a, b: t,
    lambda t, a, b: a + t / (1 / b),
    lambda t, a, b: a - t / (-1 / b),
    lambda t, a, b: (-a / b - t) / (-1 / b),
    lambda t, a, b: t * b + a,
)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Between a latent (c, h, w), as the VAE has it, and the denoiser's call, for one row.

    shape: of the latent. frames: whether the VAE wants a frame's dimension. into: for every entry of the hidden states
    the entry of the latent, or -1; template: what stands at those; out_of: for every entry of the latent the entry of
    the denoiser's output; sign: of the prediction. z = scale * x0 + offset at the VAE. onto: for every entry of the
    scheduler's sample, of sample_shape, the entry of the latent. times: what follows t.
    """

    shape: tuple[int, ...]
    frames: bool
    hidden: Path
    output: Path
    into: Tensor
    template: Tensor
    out_of: Tensor
    sign: float
    scale: Tensor
    offset: Tensor
    onto: Tensor
    sample_shape: tuple[int, ...]
    times: tuple[Time, ...]
    guidance: Mapping[str, Any]
    timing: Mapping[str, Any] = field(default_factory=dict)
    integer_times: bool = False

    @property
    def holes(self) -> dict[Path, str]:
        return {self.hidden: "latent", **{time.path: f"time{i}" for i, time in enumerate(self.times)}}

    def packed(self, x: Tensor) -> Tensor:
        """A latent, (c, h, w), as the hidden states that the denoiser takes."""
        flat = x.flatten()
        made = self.template.to(x.device, x.dtype).flatten().clone()
        there = self.into.to(x.device)
        made = torch.where(there >= 0, flat[there.clamp_min(0)], made)
        return made.view(self.template.shape)

    def unpacked(self, hidden: Tensor) -> Tensor:
        """The inverse of `packed`."""
        there = self.into.to(hidden.device)
        made = hidden.new_empty(self.onto.numel())
        made[there[there >= 0]] = hidden.flatten()[there >= 0]
        return made.view(self.shape)

    def prediction(self, output: Any) -> Tensor:
        """The denoiser's output as the prediction that the scheduler is given, (c, h, w)."""
        value: Tensor = dict(leaves(output))[self.output]
        return self.sign * value.flatten()[self.out_of.to(value.device)].view(self.shape)

    def sampled(self, x: Tensor) -> Tensor:
        """A latent, (c, h, w), in the layout of the scheduler's sample."""
        return x.flatten()[self.onto.to(x.device)].view(self.sample_shape)

    def from_sample(self, sample: Tensor) -> Tensor:
        """The inverse of `sampled`; also of a model output, of which learned variances are left."""
        if sample.shape != self.sample_shape:
            sample = sample[:, : self.sample_shape[1]]
        made = sample.new_empty(self.onto.numel())
        made[self.onto.to(sample.device)] = sample.flatten()
        return made.view(self.shape)

    def filled(self, told: Told, x: Tensor, t: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call. x: (c, h, w); t: 0-dimensional, as the scheduler says it."""
        at = t.long() if self.integer_times else t
        values = {"latent": self.packed(x), **{f"time{i}": time(at) for i, time in enumerate(self.times)}}
        tree = (told.args, told.kwargs)
        changes = {path: values[v.what] for path, v in leaves(tree) if isinstance(v, Hole)}
        args, kwargs = replaced(tree, changes)
        return args, kwargs


def measure(pipeline: Any, denoiser: Any, *, text: str, size: int | None, dtype: torch.dtype) -> Geometry:
    """Rehearse a pipeline's call. Raises ConfigurationError, in a sentence, where it cannot be recorded."""
    name = type(pipeline).__name__
    stage = _Stage(pipeline, denoiser, text, size, dtype)
    turn = stage.first()
    sample = turn.sample
    assert sample is not None
    marker, answers = Marker(sample.numel(), dtype), Marker(stage.output.numel(), dtype)
    played = [stage.play(marker, answers, j) for j in range(marker.length + 2)]
    codes = [t for t in played[0].turns if t.number][: len(marker)]
    hidden, into = _hidden(name, codes, marker)
    out_of, sign = _answered(name, played[0].turns[1:], answers, sample)
    decoded = [p.decoded for p in played]
    scale, offset, onto, shape, frames = _decoded(name, decoded, marker, sample)
    template = (
        dict(leaves((turn.args, turn.kwargs)))[hidden].detach().clone(memory_format=torch.contiguous_format)
    )
    template.view(-1)[(into >= 0).to(template.device)] = 0
    back = torch.empty_like(onto)  # for every entry of the latent, that of the sample
    back[onto] = torch.arange(len(onto))
    return Geometry(
        shape=shape,
        frames=frames,
        hidden=hidden,
        output=stage.place,
        into=torch.where(into >= 0, onto[into.clamp_min(0)], into),
        template=template,
        out_of=out_of[back],
        sign=sign,
        scale=scale,
        offset=offset,
        onto=onto,
        sample_shape=tuple(sample.shape),
        times=_times(name, played, hidden),
        guidance=stage.guidance,
        timing=played[0].timing,
        integer_times=isinstance(turn.t, Tensor) and not turn.t.is_floating_point(),
    )


class _Stage:
    """A pipeline whose denoiser is asked once, and answers in markers from then on."""

    def __init__(self, pipeline: Any, denoiser: Any, text: str, size: int | None, dtype: torch.dtype) -> None:
        self.pipeline, self.denoiser, self.text, self.size, self.dtype = pipeline, denoiser, text, size, dtype
        self.real = denoiser.forward
        self.guidance: dict[str, Any] = {}
        self.given: Any = None
        self.place: Path = ()
        self.output: Tensor = torch.empty(0)

    def first(self) -> Turn:
        """The first turn, for real, of the first call that asks the denoiser once for one row."""
        for guidance in GUIDANCE:
            self.guidance = {"guidance_scale": guidance}
            turn = self._perform(self._really, _never, 2, last=1).turns[0]
            if not isinstance(turn.sample, Tensor) or not turn.sample.is_floating_point():
                raise ConfigurationError(
                    f"{type(self.pipeline).__name__} cannot be recorded: its scheduler steps through tokens, not noise."
                )
            if turn.calls == 1 and self._rows(turn) == 1:
                self.place, self.output = next((p, v) for p, v in leaves(self.given) if isinstance(v, Tensor))
                return turn
        raise ConfigurationError(
            f"{type(self.pipeline).__name__} asks its denoiser more than once a step, or for more than one row, "
            "whatever its guidance is set to: it always guides, and cannot be recorded."
        )

    def play(self, marker: Marker, answers: Marker, number: int) -> Performance:
        """One call whose samples and answers are markers. number: 0 ends on zeros, 1 on ones, then on each digit."""
        ends = [torch.zeros(marker.count), torch.ones(marker.count), *marker.codes]
        steps = max(len(marker), len(answers)) + 2 + number

        def feed(turn: Turn, scheduler: Any) -> Tensor:
            assert turn.sample is not None
            ended = turn.number + 1 == len(scheduler.timesteps)
            code = ends[number] if ended else marker.codes[turn.number % len(marker)]
            return code.view(turn.sample.shape).to(turn.sample)

        def answer(turn: Turn) -> Any:
            code = answers.codes[(turn.number - 1) % len(answers)]
            return replaced(self.given, {self.place: code.view(self.output.shape).to(self.output)})

        return self._perform(answer, feed, steps)

    def _perform(self, answer: Any, feed: Any, steps: int, last: int = 0) -> Performance:
        pixels = "latent" if last else "pt"
        options = call_options(
            self.pipeline, self.text, steps, self.size, output_type=pixels, **self.guidance
        )
        return perform(self.pipeline, self.denoiser, options, answer=answer, feed=feed, last=last)

    def _really(self, turn: Turn) -> Any:
        self.given = self.real(*turn.args, **turn.kwargs)
        return self.given

    def _rows(self, turn: Turn) -> int:
        """Rows that the denoiser answered: of a tensor, or of a list with a tensor for each."""
        first = next(iter(self.given.values())) if isinstance(self.given, Mapping) else self.given[0]
        if isinstance(first, (list, tuple)):
            return len(first)
        sample = turn.sample
        assert sample is not None
        return len(first) if first[0].numel() >= sample[0].numel() else 1


def _never(turn: Turn, scheduler: Any) -> Tensor:
    raise AssertionError("a rehearsal of one turn has no next sample")


def _hidden(name: str, turns: Sequence[Turn], marker: Marker) -> tuple[Path, Tensor]:
    """The argument that is the latent, and where each of its entries comes from."""
    found = []
    trees = [dict(leaves((turn.args, turn.kwargs))) for turn in turns]
    for path, value in trees[0].items():
        alike = [tree.get(path) for tree in trees]
        if not isinstance(value, Tensor) or value.numel() < marker.count or not value.is_floating_point():
            continue
        if all(isinstance(v, Tensor) and v.shape == value.shape for v in alike):
            read = marker.places([v for v in alike if isinstance(v, Tensor)])
            if read is not None:
                found.append((path, read[0]))
    if len(found) != 1:
        what = "no argument" if not found else f"{len(found)} arguments"
        raise ConfigurationError(
            f"{name} cannot be recorded: {what} of its denoiser's call is the latent with its entries in another order."
        )
    return found[0]


def _answered(name: str, turns: Sequence[Turn], answers: Marker, sample: Tensor) -> tuple[Tensor, float]:
    """For every entry of the sample the entry of the denoiser's output that predicts it, and the sign."""
    said = [turn.prediction for turn in turns[: len(answers)]]
    read = None
    if all(isinstance(v, Tensor) for v in said):
        kept = [v if v.shape == sample.shape else v[:, : sample.shape[1]] for v in said if v is not None]
        if kept[0].shape == sample.shape:
            read = answers.chosen(kept)
    if read is None:
        raise ConfigurationError(
            f"{name} cannot be recorded: what it tells its scheduler is not its denoiser's output, in whatever order."
        )
    return read


def _decoded(
    name: str, decoded: Sequence[Tensor | None], marker: Marker, sample: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...], bool]:
    """(scale, offset, onto, shape, frames): how the last sample became the VAE's latent; itself where there is none."""
    if all(z is None for z in decoded):
        shape = tuple(sample.shape[1:])
        one = torch.ones(shape)
        if len(shape) != 3:
            raise ConfigurationError(
                f"{name} cannot be recorded: it has no VAE, and its latents are no images."
            )
        return one, torch.zeros(shape), torch.arange(sample.numel()), shape, False
    zs = [z.detach().double().cpu() for z in decoded if z is not None]
    frames = zs[0].ndim == 5
    if (
        zs[0].numel() != marker.count
        or len(zs[0]) != 1
        or zs[0].ndim not in (4, 5)
        or (frames and zs[0].shape[2] != 1)
    ):
        raise ConfigurationError(
            f"{name} cannot be recorded: its VAE is not given one frame's latent ({tuple(zs[0].shape)} of a sample of "
            f"{tuple(sample.shape)})."
        )
    offset, scale = zs[0], zs[1] - zs[0]
    digits = torch.stack([((z - offset) / scale).round() - 1 for z in zs[2:]])
    places = sum(digit * marker.base**d for d, digit in enumerate(digits)).long().flatten()
    if not bool(scale.ne(0).all()) or not torch.equal(places.sort().values, torch.arange(marker.count)):
        raise ConfigurationError(
            f"{name} cannot be recorded: its VAE is not given the latent, scaled and shifted."
        )
    shape = tuple(zs[0].shape[-3:]) if not frames else (zs[0].shape[1], *zs[0].shape[-2:])
    onto = torch.empty_like(places)
    onto[places] = torch.arange(len(places))
    return scale.view(shape).float(), offset.view(shape).float(), onto, shape, frames


def _times(name: str, played: Sequence[Performance], hidden: Path) -> tuple[Time, ...]:
    """The arguments that follow t, in several calls of different length alike."""
    turns = [turn for performance in played for turn in performance.turns]
    trees = [dict(leaves((turn.args, turn.kwargs))) for turn in turns]
    ts = torch.tensor([float(turn.t) for turn in turns], dtype=torch.float64)
    found = []
    for path, value in trees[0].items():
        values = [tree.get(path) for tree in trees]
        if path == hidden or not isinstance(value, (Tensor, float, int)) or isinstance(value, bool):
            continue
        if all(_same(v, value) for v in values):
            continue
        found.append(_time(name, path, values, turns, ts))
    if not found:
        raise ConfigurationError(
            f"{name} cannot be recorded: no argument of its denoiser's call follows the time."
        )
    return tuple(found)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _time(name: str, path: Path, values: Sequence[Any], turns: Sequence[Turn], ts: Tensor) -> Time:
    """The line through one argument's values over t, by the arithmetic that gives the same bits where one does."""
    seen = torch.stack([torch.as_tensor(v).detach().double().flatten()[0].cpu() for v in values])
    low, high = int(ts.argmin()), int(ts.argmax())
    beta = float((seen[high] - seen[low]) / (ts[high] - ts[low]))
    if beta and abs(1 / beta - round(1 / beta)) < 1e-2 * abs(1 / beta):
        beta = 1 / round(1 / beta) if round(1 / beta) else beta
    alpha = float((seen - beta * ts).median())
    alpha = float(round(alpha)) if abs(alpha - round(alpha)) < 1e-2 else alpha
    times = [Time(path, alpha, beta, form, values[0]) for form in range(len(FORMS)) if beta]
    at = [torch.as_tensor(turn.t) for turn in turns]
    for time in times:
        if time.form == 0 and (alpha, beta) != (0.0, 1.0):
            continue
        if all(_same(time(t), v) for t, v in zip(at, values, strict=True)):
            return time
    wide = float(seen.abs().max()) * (1e-2 if seen.abs().max() and _is_half(values[0]) else 1e-5)
    if times and all(
        float((torch.as_tensor(times[-1](t)).double() - torch.as_tensor(v).double()).abs().max()) <= wide
        for t, v in zip(at, values, strict=True)
    ):
        return times[-1]
    raise ConfigurationError(
        f"{name} cannot be recorded: its denoiser is told something of each step ({path[-1]}) that is no line in t."
    )


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def record(pipeline: Any, denoiser: Any, geometry: Geometry, *, text: str, size: int | None) -> Told:
    """The pipeline's own call for a prompt, ended at its denoiser's first forward: the arguments, without x and t."""
    options = call_options(pipeline, text, 2, size, output_type="latent", **geometry.guidance)
    shown = perform(pipeline, denoiser, options, answer=_nothing, feed=_never, at_forward=True)
    turn = shown.turns[0]
    return told_of(turn.args, turn.kwargs, geometry.holes)


def _nothing(turn: Turn) -> Any:
    raise AssertionError("a recording ends before the denoiser answers")
