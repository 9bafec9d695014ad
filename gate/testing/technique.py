"""Does a technique keep its contract? Every invariant of it, on a few samples."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

from gate.composition import Composition
from gate.errors import PluginError, UnsuitableError
from gate.passes import Plan, single_pass, stream
from gate.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Response
    from gate.sample import Sample, SampleSet

SAMPLES = 4
TIMESTEPS = (50, 300)
TOLERANCE = 1e-5  # of the largest absolute value: what another batch size may change in float32
HALF_TOLERANCE = 2e-2


class Finding(NamedTuple):
    """One invariant, whether it holds, and what was seen."""

    invariant: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """What `check_technique` found, in the order of the checks."""

    technique: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if not f.ok)

    @property
    def ok(self) -> bool:
        return not self.failures

    def raise_for_failures(self) -> None:
        """Raise PluginError that names every broken invariant, where there is one."""
        if not self.ok:
            broken = "; ".join(f"{f.invariant}: {f.detail}" for f in self.failures)
            raise PluginError(f"{self.technique} breaks its contract: {broken}")

    def __str__(self) -> str:
        return "\n".join(f"{'ok  ' if f.ok else 'FAIL'}  {f.invariant}: {f.detail}" for f in self.findings)


def check_technique(
    technique: Technique | type[Technique] | str,
    backbone: Backbone | None = None,
    samples: SampleSet | None = None,
) -> CheckReport:
    """Put a technique through every invariant of the contract.

    technique: an instance, a class (with its defaults), or a name as on the command line. backbone: the
    embedded one where none is given. samples: a few captioned and labelled images of one size; held-out
    scenes by default. What the technique raises becomes a failed finding; only a backbone or samples that
    cannot be loaded raise.
    """
    from gate.backbones import load_backbone
    from gate.data import load_data

    backbone = backbone or load_backbone("tiny", device="cpu", dtype="float32")
    chosen = samples or load_data("scenes-held-out", n=SAMPLES, size=backbone.image_size)
    name = technique if isinstance(technique, str) else technique.name or _class_of(technique).__name__
    try:
        template = _instance(technique)
    except Exception as error:  # a stranger's constructor may raise anything; that is what is being checked
        return CheckReport(name, (Finding("can be made", False, _said(error)),))
    exam = _Examination(template, backbone, chosen)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("states its facts", exam.facts),
        ("serves these samples", exam.suitable),
        ("refuses a backbone it does not serve", exam.refusal),
        ("neutral settings are vanilla, bit for bit", exam.neutral),
        ("detaching restores the backbone", exam.restores),
        ("is finite", exam.finite),
        ("deterministic in the seed", exam.deterministic),
        ("the seed matters where it should", exam.seedless),
        ("independent of batch size and order", exam.independent),
        ("declared cost is the counted cost", exam.cost),
        ("state survives a save and load", exam.round_trip),
        ("takes clean and sampled requests", exam.other_origins),
    ]
    return CheckReport(name, tuple(_find(invariant, check) for invariant, check in checks))


class _Broken(Exception):
    """An invariant does not hold; the text says how."""


def _find(invariant: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(invariant, True, check())
    except _Broken as error:
        return Finding(invariant, False, str(error))
    except Exception as error:  # see check_technique: whatever a technique raises is a finding
        return Finding(invariant, False, _said(error))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _class_of(technique: Technique | type[Technique]) -> type[Technique]:
    return technique if isinstance(technique, type) else type(technique)


def _instance(technique: Technique | type[Technique] | str) -> Technique:
    if isinstance(technique, str):
        from gate.registry import create_technique

        return create_technique(technique)
    return technique() if isinstance(technique, type) else technique


def _fresh(technique: Technique, neutral: bool = False) -> Technique:
    """The same settings, or the neutral ones, without anything that `fit` learned."""
    if isinstance(technique, Composition):
        return Composition(parts=tuple(_fresh(part, neutral) for part in technique.parts))
    changed = {**technique.settings, **(technique.neutral or {})} if neutral else technique.settings
    made = type(technique)(**changed)
    vars(made)["name"] = technique.name
    return made


def _has_neutral(technique: Technique) -> bool:
    parts = technique.parts if isinstance(technique, Composition) else (technique,)
    return all(part.neutral is not None for part in parts)


@dataclass
class _Result:
    """{"prediction" or layer: {sample id: (c, h, w)}} of one pass, and the calls per sample that it took."""

    rows: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    per_image: float = 0.0
    per_pass: float = 0.0


@dataclass
class _Examination:
    technique: Technique
    backbone: Backbone
    samples: SampleSet
    latents: dict[str, Tensor] = field(default_factory=dict)
    ready: dict[bool, Technique] = field(default_factory=dict)
    _results: dict[tuple[int, int], _Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from gate.backbone import pixels

        for sample in self.samples:  # one by one: latents must not depend on the batch either
            self.latents[sample.id] = self.backbone.encode(pixels([sample]))[0]
        known = self.backbone.layer_paths
        wanted = [layer for layer in ("mid", "up0", "up1", "up2", "up3") if layer in known]
        self.layers = tuple(wanted or list(known)[:1])
        self.backbone.calibrate(self.layers)

    def fitted(self, neutral: bool = False) -> Technique:
        """The technique after `fit`, which happens once; with neutral settings instead where asked."""
        if neutral not in self.ready:
            technique = _fresh(self.technique, neutral)
            technique.fit(self.backbone, self.samples)
            self.ready[neutral] = technique
        return self.ready[neutral]

    def extract(
        self,
        technique: Technique,
        passes: Sequence[tuple[int, int]] = ((TIMESTEPS[0], 0),),
        order: Sequence[Sample] | None = None,
        size: int | None = None,
    ) -> list[_Result]:
        """Prediction and features of all samples through a fitted technique, per pass (timestep, seed)."""
        import torch

        chosen = dataclasses.replace(self.samples, samples=tuple(order or self.samples))
        x0 = torch.stack([self.latents[s.id] for s in chosen])
        plan = Plan(
            self.backbone,
            technique,
            chosen,
            pairs=tuple(passes),
            layers=self.layers,
            batch_size=size or len(chosen),
            x0=x0,
        )
        out = {cell: _Result() for cell in plan.pairs}
        with contextlib.closing(stream(plan)) as stretch:
            for passed in stretch:
                request, share = passed.request, len(passed.request.batch) / len(chosen)
                result = out[int(request.t[0]), request.seed]
                result.per_image += passed.conditioned[0] * share
                result.per_pass += passed.calls * share
                self._keep(result, passed.response, request.batch)
        return list(out.values())

    def batch(self, part: Sequence[Sample], everyone: Sequence[Sample]) -> Batch:
        import torch

        x0 = torch.stack([self.latents[s.id] for s in part])
        return self.backbone.batch(part, x0, everyone=everyone, class_names=self.samples.classes)

    def _keep(self, result: _Result, response: Response, batch: Batch) -> None:
        missing = [layer for layer in self.layers if layer not in response.features]
        if missing:
            raise _Broken(f"the response lacks the features of {', '.join(missing)}")
        for name, value in {"prediction": response.prediction, **response.features}.items():
            if len(value) != len(batch):
                raise _Broken(f"{name} has {len(value)} rows for {len(batch)} samples")
            for sample, row in zip(batch.samples, value, strict=True):
                result.rows.setdefault(name, {})[sample.id] = row

    @property
    def results(self) -> dict[tuple[int, int], _Result]:
        """The technique's results on all samples at once, from one end of the schedule to the other."""
        if not self._results:
            last = len(self.backbone.schedule) - 1
            passes = [(TIMESTEPS[0], 0), (TIMESTEPS[1], 1), (0, 0), (last, 0)]
            self._results.update(zip(passes, self.extract(self.fitted(), passes), strict=True))
        return self._results

    def values(self, result: _Result) -> dict[str, Tensor]:
        """{"prediction": (n, c, h, w), layer: ...}, rows in the samples' own order."""
        import torch

        return {name: torch.stack([row[s.id] for s in self.samples]) for name, row in result.rows.items()}

    @property
    def usual(self) -> dict[str, Tensor]:
        """The values of the first pass, that others are compared with."""
        return self.values(self.results[TIMESTEPS[0], 0])

    # the invariants, each a sentence of what was seen

    def facts(self) -> str:
        technique = self.technique
        if not technique.name or not technique.summary or "\n" in technique.summary:
            raise _Broken("a technique needs a name and a summary of one line")
        if not technique.families:
            raise _Broken("families is empty: it would serve no backbone")
        return technique.summary

    def suitable(self) -> str:
        self.technique.check(self.backbone, self.samples)
        return f"{len(self.samples)} samples of {self.samples.name} on {self.backbone.name}"

    def refusal(self) -> str:
        stranger = cast("Backbone", _Stranger())
        try:
            self.technique.check(stranger, self.samples)
        except UnsuitableError as error:
            return error.reason
        raise _Broken(f"check accepts a backbone of the family {_Stranger.family!r}; raise UnsuitableError")

    def neutral(self) -> str:
        if not _has_neutral(self.technique):
            return "declares no neutral settings"
        passes = [(t, 0) for t in TIMESTEPS]
        pairs = zip(
            self.extract(Technique(), passes), self.extract(self.fitted(neutral=True), passes), strict=True
        )
        for vanilla, neutral in pairs:
            _expect_equal(self.values(vanilla), self.values(neutral), "differs from vanilla")
        return f"equal at t = {' and '.join(map(str, TIMESTEPS))}"

    def restores(self) -> str:
        import torch

        from gate.testing.snapshot import Snapshot

        self.extract(Technique())  # what a first pass caches is not the technique's doing
        before = Snapshot.of(self.backbone)
        technique = _fresh(self.technique)
        technique.fit(self.backbone, self.samples)
        self.extract(technique)
        with contextlib.suppress(_Interruption), torch.no_grad(), technique.attach(self.backbone):
            raise _Interruption  # an interrupted screen must leave the backbone whole as well
        changed = before.differences(Snapshot.of(self.backbone))
        if changed:
            raise _Broken(f"changed for good: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}")
        return f"{before.tensors} parameters and buffers, hooks and attributes as before"

    def finite(self) -> str:
        for (t, _), result in self.results.items():
            for name, value in self.values(result).items():
                if not bool(value.isfinite().all()):
                    raise _Broken(f"{name} holds NaN or infinity at t = {t}")
        return f"at t = {', '.join(str(t) for t, _ in sorted(self.results))}"

    def deterministic(self) -> str:
        import torch

        first = self.usual
        state = torch.get_rng_state()
        try:
            torch.manual_seed(12345)  # the global random state must not matter, neither to fit nor to a pass
            technique = _fresh(self.technique)
            technique.fit(self.backbone, self.samples)
            _, again = self.extract(
                technique, [(TIMESTEPS[1], 1), (TIMESTEPS[0], 0)]
            )  # nor a pass in between
        finally:
            torch.set_rng_state(state)
        what = "differs between two runs of one seed"
        if self.backbone.device.type != "cpu":
            return self._expect_close(first, self.values(again), what)
        _expect_equal(first, self.values(again), what)
        return "two runs of one seed agree bit for bit"

    def seedless(self) -> str:
        if not self.technique.seedless:
            return "draws on the noise seed"
        [other] = self.extract(self.fitted(), [(TIMESTEPS[0], 1)])
        return self._expect_close(self.usual, self.values(other), "says seedless and differs with the seed")

    def independent(self) -> str:
        technique = self.fitted()
        [one] = self.extract(technique, size=1)
        self._expect_close(self.usual, self.values(one), "differs one sample at a time")
        [turned] = self.extract(technique, order=tuple(reversed(self.samples.samples)), size=3)
        return self._expect_close(self.usual, self.values(turned), "differs in another order")

    def _expect_close(self, a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> str:
        exact = str(self.backbone.dtype) == "torch.float32"
        worst, name = max((_distance(a[k], b[k]), k) for k in a)
        if not worst <= (TOLERANCE if exact else HALF_TOLERANCE):
            raise _Broken(f"{name} {what}, by {worst:.1e} of its largest value")
        return f"within {worst:.0e} of the largest value"

    def cost(self) -> str:
        declared = self.fitted().cost
        for (t, _), counted in self.results.items():
            if abs(counted.per_image - declared.per_image) > 1e-9:
                raise _Broken(f"per image {declared.per_image:g} declared, {counted.per_image:g} counted")
            if abs(counted.per_pass - declared.per_pass) > 1e-9:
                raise _Broken(
                    f"per pass {declared.per_pass:g} declared, {counted.per_pass:g} counted at t = {t}"
                )
        return f"{declared.per_image:g} calls per image and {declared.per_pass:g} per pass"

    def round_trip(self) -> str:
        from safetensors.torch import load, save

        technique = self.fitted()
        state = technique.state()
        restored = _fresh(self.technique)
        restored.load_state(load(save({k: v.detach().cpu().contiguous() for k, v in state.items()})))
        [again] = self.extract(restored)
        self._expect_close(self.usual, self.values(again), "differs after a round trip")
        if restored.cost != technique.cost:
            raise _Broken(f"the cost is {restored.cost} after a round trip, {technique.cost} before")
        return f"{len(state)} tensors" if state else "keeps no state"

    def other_origins(self) -> str:
        import torch

        technique = self.fitted()
        batch = self.batch(self.samples.samples, self.samples.samples)
        with torch.no_grad(), technique.attach(self.backbone):
            conditioning = technique.condition(batch.neutral, batch)
            noised = batch.request(TIMESTEPS[1], 0, conditioning)
            for request in (batch.clean_request(conditioning), noised.with_(origin="sampled")):
                response = single_pass(technique, request, self.layers)
                if response.prediction.shape != batch.x0.shape:
                    raise _Broken(f"a {request.origin} request gives {tuple(response.prediction.shape)}")
                if not bool(response.prediction.isfinite().all()):
                    raise _Broken(f"a {request.origin} request gives NaN or infinity")
                if set(response.features) != set(self.layers):
                    raise _Broken(
                        f"a {request.origin} request gives the features of {set(response.features)}"
                    )
        return "both give a finite prediction and all features"


class _Interruption(Exception):
    pass


class _Stranger:
    """A backbone of a family that no technique serves; it has nothing but its name."""

    family = "no-such-family"
    name = "a backbone of no known family"


def _expect_equal(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    for name, value in a.items():
        if not bool((value == b[name]).all()):
            raise _Broken(f"{name} {what}, by {_distance(value, b[name]):.1e} of its largest value")


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest absolute value of a."""
    return float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-30))
