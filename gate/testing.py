"""Does a technique keep its contract? For ours, for a stranger's, and for `gate check`.

from gate.testing import check_technique

check_technique(MyTechnique).raise_for_failures()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gate.errors import PluginError, UnsuitableError
from gate.technique import Composition, Technique, run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gate.backbone import Backbone
    from gate.sample import Sample, SampleSet

SAMPLES = 4
TIMESTEPS = (50, 300)
TOLERANCE = 1e-5  # of the largest absolute value: what another batch size may change in float32


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
    from gate.backbone import load_backbone
    from gate.data import load_data

    backbone = backbone or load_backbone("tiny", device="cpu", dtype="float32")
    chosen = samples or load_data("scenes-held-out", n=SAMPLES, size=backbone.image_size)
    name = technique if isinstance(technique, str) else technique.name or _class_of(technique).__name__
    try:
        template = _instance(technique)
    except Exception as error:  # a stranger's constructor may raise anything; that is what is being checked
        return CheckReport(name, (Finding("can be made", False, _said(error)),))
    bench = _Bench(template, backbone, chosen)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("states its facts", bench.facts),
        ("serves these samples", bench.suitable),
        ("refuses a backbone it does not serve", bench.refusal),
        ("neutral settings are vanilla, bit for bit", bench.neutral),
        ("detaching restores the backbone", bench.restores),
        ("is finite", bench.finite),
        ("deterministic in the seed", bench.deterministic),
        ("independent of batch size and order", bench.independent),
        ("declared cost is the counted cost", bench.cost),
        ("state survives a save and load", bench.round_trip),
        ("takes clean and sampled requests", bench.other_origins),
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
    """Rows in the samples' order, {"prediction": (n, c, h, w), layer: ...}, and the calls that it took."""

    values: dict[str, Tensor]
    per_image: float = 0.0
    per_pass: float = 0.0


@dataclass
class _Bench:
    technique: Technique
    backbone: Backbone
    samples: SampleSet
    results: dict[tuple[int, int], _Result] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from gate.backbone import pixels

        for sample in self.samples:  # one by one: latents must not depend on the batch either
            self.latents[sample.id] = self.backbone.encode(pixels([sample]))[0]
        known = self.backbone.layer_paths
        wanted = [layer for layer in ("mid", "up0", "up1", "up2", "up3") if layer in known]
        self.layers = tuple(wanted or list(known)[:1])

    def fitted(self, neutral: bool = False) -> Technique:
        technique = _fresh(self.technique, neutral)
        technique.fit(self.backbone, self.samples)
        return technique

    def extract(
        self,
        technique: Technique,
        t: int,
        seed: int,
        order: Sequence[Sample] | None = None,
        size: int | None = None,
    ) -> _Result:
        """Prediction and features of all samples through an already fitted technique."""
        import torch

        order = order or self.samples.samples
        rows: dict[str, dict[str, Tensor]] = {}
        conditioning_calls = pass_calls = 0
        with torch.no_grad(), technique.attach(self.backbone), _counting(self.backbone) as count:
            for i in range(0, len(order), size or len(order)):
                part = tuple(order[i : i + (size or len(order))])
                x0 = torch.stack([self.latents[s.id] for s in part])
                batch = self.backbone.batch(part, x0, everyone=order, class_names=self.samples.classes)
                before = count[0]
                conditioning = technique.condition(batch.neutral, batch)
                conditioning_calls += count[0] - before
                before = count[0]
                response = run(technique, batch.request(t, seed, conditioning), self.layers)
                pass_calls += count[0] - before
                missing = [layer for layer in self.layers if layer not in response.features]
                if missing:
                    raise _Broken(f"the response lacks the features of {', '.join(missing)}")
                for name, value in {"prediction": response.prediction, **response.features}.items():
                    if len(value) != len(part):
                        raise _Broken(f"{name} has {len(value)} rows for {len(part)} samples")
                    for sample, row in zip(part, value, strict=True):
                        rows.setdefault(name, {})[sample.id] = row
        values = {name: torch.stack([row[s.id] for s in self.samples]) for name, row in rows.items()}
        return _Result(values, conditioning_calls / len(order), pass_calls / len(order))

    def result(self, t: int = TIMESTEPS[0], seed: int = 0) -> _Result:
        """The technique's own result on all samples at once, computed once."""
        if (t, seed) not in self.results:
            self.results[t, seed] = self.extract(self.fitted(), t, seed)
        return self.results[t, seed]

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
        neutral = self.fitted(neutral=True)
        for t in TIMESTEPS:
            vanilla = self.extract(Technique(), t, 0)
            _expect_equal(vanilla.values, self.extract(neutral, t, 0).values, "differs from vanilla")
        return f"equal at t = {' and '.join(map(str, TIMESTEPS))}"

    def restores(self) -> str:
        import torch

        from gate.snapshot import Snapshot

        self.extract(Technique(), TIMESTEPS[0], 0)  # what a first pass caches is not the technique's doing
        before = Snapshot.of(self.backbone)
        technique = self.fitted()
        self.extract(technique, TIMESTEPS[0], 0)
        with torch.no_grad(), contextlib.suppress(_Interruption), technique.attach(self.backbone):
            raise _Interruption  # what an interrupted screen leaves behind must be whole as well
        changed = before.differences(Snapshot.of(self.backbone))
        if changed:
            raise _Broken(f"changed for good: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}")
        return f"{before.tensors} parameters and buffers, hooks and attributes as before"

    def finite(self) -> str:
        for t in (0, *TIMESTEPS, len(self.backbone.schedule) - 1):
            for name, value in self.result(t).values.items():
                if not bool(value.isfinite().all()):
                    raise _Broken(f"{name} holds NaN or infinity at t = {t}")
        return f"at t = 0 to {len(self.backbone.schedule) - 1}"

    def deterministic(self) -> str:
        import torch

        first = self.result()
        technique = self.fitted()
        self.extract(technique, TIMESTEPS[1], 1)  # a pass with another seed between must leave no trace
        state = torch.get_rng_state()
        try:
            torch.manual_seed(12345)  # and neither must the global random state
            again = self.extract(technique, TIMESTEPS[0], 0)
        finally:
            torch.set_rng_state(state)
        if self.backbone.device.type == "cpu":
            _expect_equal(first.values, again.values, "differs between two runs of one seed")
        else:
            self._expect_close(first.values, again.values, "differs between two runs of one seed")
        return "two runs of one seed agree"

    def independent(self) -> str:
        together = self.result()
        technique = self.fitted()
        one = self.extract(technique, TIMESTEPS[0], 0, size=1)
        self._expect_close(together.values, one.values, "differs one sample at a time")
        reversed_order = tuple(reversed(self.samples.samples))
        turned = self.extract(technique, TIMESTEPS[0], 0, order=reversed_order, size=3)
        return self._expect_close(together.values, turned.values, "differs in another order")

    def _expect_close(self, a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> str:
        exact = str(self.backbone.dtype) == "torch.float32"
        worst, name = max((_distance(a[k], b[k]), k) for k in a)
        if not worst <= (TOLERANCE if exact else 2e-2):
            raise _Broken(f"{name} {what}, by {worst:.1e} of its largest value")
        return f"within {worst:.0e} of the largest value"

    def cost(self) -> str:
        technique = self.fitted()
        declared = technique.cost
        for t in TIMESTEPS:
            for seed in (0, 1):
                counted = self.extract(technique, t, seed)
                if counted.per_image != declared.per_image:
                    raise _Broken(f"per image {declared.per_image:g} declared, {counted.per_image:g} counted")
                if counted.per_pass != declared.per_pass:
                    raise _Broken(f"per pass {declared.per_pass:g} declared, {counted.per_pass:g} counted")
        return f"{declared.per_image:g} calls per image and {declared.per_pass:g} per pass"

    def round_trip(self) -> str:
        from safetensors.torch import load, save

        technique = self.fitted()
        state = technique.state()
        restored = _fresh(self.technique)
        restored.load_state(load(save({k: v.detach().cpu().contiguous() for k, v in state.items()})))
        again = self.extract(restored, TIMESTEPS[0], 0)
        self._expect_close(self.result().values, again.values, "differs after a round trip")
        if restored.cost != technique.cost:
            raise _Broken(f"the cost is {restored.cost} after a round trip, {technique.cost} before")
        return f"{len(state)} tensors" if state else "keeps no state"

    def other_origins(self) -> str:
        import torch

        technique = self.fitted()
        x0 = torch.stack([self.latents[s.id] for s in self.samples])
        batch = self.backbone.batch(
            self.samples.samples, x0, everyone=self.samples, class_names=self.samples.classes
        )
        with torch.no_grad(), technique.attach(self.backbone):
            conditioning = technique.condition(batch.neutral, batch)
            noised = batch.request(TIMESTEPS[1], 0, conditioning)
            for request in (batch.clean_request(conditioning), noised.with_(origin="sampled")):
                response = run(technique, request, self.layers)
                if response.prediction.shape != x0.shape:
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


@contextlib.contextmanager
def _counting(backbone: Backbone) -> Iterator[list[int]]:
    """Rows that went through the denoiser itself, whoever called it."""
    count = [0]

    def rows(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        count[0] += len(x)

    handle = backbone.denoiser.register_forward_pre_hook(rows, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def _expect_equal(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    for name, value in a.items():
        if not bool((value == b[name]).all()):
            raise _Broken(f"{name} {what}, by {_distance(value, b[name]):.1e} of its largest value")


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest absolute value of a."""
    return float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-30))
