"""What a technique gives on a few samples: the passes that its checks compare."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gate.carried import Carried, Grids
from gate.composition import Composition
from gate.passes import Plan, stream
from gate.technique import Technique
from gate.testing.report import Broken

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Response
    from gate.sample import Sample, SampleSet

TIMESTEPS = (50, 300)
TOLERANCE = 1e-5  # of the largest absolute value: what another batch size may change in float32
HALF_TOLERANCE = 2e-2
MANY = 16  # images, for what is read off features by regression


@dataclass
class Result:
    """{"prediction" or layer: {sample id: (c, h, w)}} of one pass, and the calls per sample that it took."""

    rows: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    per_image: float = 0.0
    per_pass: float = 0.0


@dataclass
class Examination:
    """A technique, a backbone and a few samples, and the passes that were made with them."""

    technique: Technique
    backbone: Backbone
    samples: SampleSet
    latents: dict[str, Tensor] = field(default_factory=dict)
    ready: dict[bool, Technique] = field(default_factory=dict)
    _results: dict[tuple[int, int], Result] = field(default_factory=dict)

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
            technique = fresh(self.technique, neutral)
            technique.fit(self.backbone, technique.visible(self.samples))
            self.ready[neutral] = technique
        return self.ready[neutral]

    def extract(
        self,
        technique: Technique,
        passes: Sequence[tuple[int, int]] = ((TIMESTEPS[0], 0),),
        order: Sequence[Sample] | None = None,
        size: int | None = None,
    ) -> list[Result]:
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
        out = {cell: Result() for cell in plan.pairs}
        with contextlib.closing(stream(plan)) as stretch:
            for passed in stretch:
                request, share = passed.request, len(passed.request.batch) / len(chosen)
                result = out[int(request.t[0]), request.seed]
                result.per_image += passed.conditioned[0] * share
                result.per_pass += passed.calls * share
                self._keep(result, passed.response, request.batch)
        return list(out.values())

    @functools.cached_property
    def many(self) -> tuple[SampleSet, Tensor]:
        """As many images as it takes to say what features carry, with their latents: the samples, or held-out scenes
        where they are few."""
        import torch

        from gate.backbone import pixels

        few = len(self.samples) < MANY
        samples = _scenes(self.backbone.image_size) if few else self.samples
        x0 = (
            [self.backbone.encode(pixels([s])) for s in samples]
            if few
            else [self.latents[s.id][None] for s in samples]
        )
        return samples, torch.cat(x0)

    def plan(self, technique: Technique, t: int = TIMESTEPS[0]) -> Plan:
        """One noised pass of a fitted technique over many images."""
        samples, x0 = self.many
        return Plan(self.backbone, technique, samples, (t,), (0,), self.layers, len(samples), x0)

    @functools.cached_property
    def usual_carried(self) -> dict[int, Carried]:
        """What the plain backbone's features carry, by timestep."""
        return {t: self.carried(Technique(), t) for t in TIMESTEPS}

    def carried(self, technique: Technique, t: int) -> Carried:
        """What the features of a fitted technique carry of many images."""
        grids = Grids()
        with contextlib.closing(stream(self.plan(technique, t))) as passes:
            for passed in passes:
                grids.add(passed.response.features)
        return grids.carried(self.many[1])

    def batch(self, part: Sequence[Sample], everyone: Sequence[Sample]) -> Batch:
        import torch

        x0 = torch.stack([self.latents[s.id] for s in part])
        return self.backbone.batch(part, x0, everyone=everyone, class_names=self.samples.classes)

    def _keep(self, result: Result, response: Response, batch: Batch) -> None:
        missing = [layer for layer in self.layers if layer not in response.features]
        if missing:
            raise Broken(f"the response lacks the features of {', '.join(missing)}")
        for name, value in {"prediction": response.prediction, **response.features}.items():
            if len(value) != len(batch):
                raise Broken(f"{name} has {len(value)} rows for {len(batch)} samples")
            for sample, row in zip(batch.samples, value, strict=True):
                result.rows.setdefault(name, {})[sample.id] = row

    @property
    def results(self) -> dict[tuple[int, int], Result]:
        """The technique's results on all samples at once, from one end of the schedule to the other."""
        if not self._results:
            last = len(self.backbone.schedule) - 1
            passes = [(TIMESTEPS[0], 0), (TIMESTEPS[1], 1), (0, 0), (last, 0)]
            self._results.update(zip(passes, self.extract(self.fitted(), passes), strict=True))
        return self._results

    def values(self, result: Result) -> dict[str, Tensor]:
        """{"prediction": (n, c, h, w), layer: ...}, rows in the samples' own order."""
        import torch

        return {name: torch.stack([row[s.id] for s in self.samples]) for name, row in result.rows.items()}

    @property
    def usual(self) -> dict[str, Tensor]:
        """The values of the first pass, that others are compared with."""
        return self.values(self.results[TIMESTEPS[0], 0])

    def expect_close(self, a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> str:
        exact = str(self.backbone.dtype) == "torch.float32"
        worst, name = max((distance(a[k], b[k]), k) for k in a)
        if not worst <= (TOLERANCE if exact else HALF_TOLERANCE):
            raise Broken(f"{name} {what}, by {worst:.1e} of its largest value")
        return f"within {worst:.0e} of the largest value"


@functools.cache
def _scenes(size: int) -> SampleSet:
    from gate.data import load_data

    return load_data("scenes-held-out", n=MANY, size=size)


def fresh(technique: Technique, neutral: bool = False) -> Technique:
    """The same settings, or the neutral ones, without anything that `fit` learned."""
    if isinstance(technique, Composition):
        return Composition(parts=tuple(fresh(part, neutral) for part in technique.parts))
    changed = {**technique.settings, **(technique.neutral or {})} if neutral else technique.settings
    made = type(technique)(**changed)
    vars(made)["name"] = technique.name
    return made


def expect_equal(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    for name, value in a.items():
        if not bool((value == b[name]).all()):
            raise Broken(f"{name} {what}, by {distance(value, b[name]):.1e} of its largest value")


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest absolute value of a."""
    return float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp_min(1e-30))
