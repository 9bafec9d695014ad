"""What all techniques of a screening share, made from its configuration alone."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gate.backbone import Backbone, pixels
from gate.backbones import load_backbone, resolve_layers
from gate.calls import Memo
from gate.errors import ConfigurationError, PluginError
from gate.extraction.plan import usual_batch
from gate.machine import halving
from gate.measure import Measure
from gate.metric import Compares, Metric
from gate.passes import Plan, stream
from gate.probe import SKETCHES, Folds, Probe, make_folds, probe_map
from gate.registry import select_plugins
from gate.request import Response
from gate.sample import MIN_SAMPLES, SampleSet
from gate.screening.config import ScreenConfig
from gate.screening.pictures import PCA_SAMPLES, Basis, pca_basis, pca_layer
from gate.screening.samples import load_for
from gate.screening.shelf import Shelf
from gate.technique import Technique

Log = Callable[[str], None]
Paced = Callable[[Backbone, int, float], None]  # backbone, images, seconds of a vanilla call on one of them


@dataclass(frozen=True, eq=False)
class Reference:
    """The plain backbone at t = 0 without noise, all samples; its features are F_ref. Rows lie on shelves."""

    prediction: Shelf
    x0: Shelf
    features: dict[str, Shelf]

    def __call__(self, rows: slice) -> Response:
        """The clean pass of some rows."""
        features = {layer: shelf.get(rows) for layer, shelf in self.features.items()}
        return Response(self.prediction.get(rows), self.x0.get(rows), features)


@dataclass(frozen=True, eq=False)
class Bench:
    """Samples, latents, folds, the chosen layers, metrics, probes and the reference; nothing of any technique.

    x0: (n, c, h, w). memo: calls that several techniques make. scratch: a folder for what outgrows memory.
    """

    backbone: Backbone
    samples: SampleSet
    x0: Tensor
    config: ScreenConfig
    layers: tuple[str, ...]
    metrics: tuple[Metric, ...]
    probes: tuple[Probe, ...]
    folds: Folds | None
    batch_size: int
    reference: Reference
    pca_basis: Basis
    memo: Memo
    scratch: Path | None = None

    @functools.cached_property
    def reference_maps(self) -> NDArray[np.float32]:
        """The map of each sample's reference features, (n, c, h, w): what probes against the reference read."""
        n, size = len(self.samples), self.batch_size
        shelf = Shelf(n, folder=self.scratch)
        for i in range(0, n, size):
            rows = slice(i, min(i + size, n))
            shelf.put(rows, probe_map(self.reference(rows).features))
        return shelf.array()

    def judged(self, probe: Probe, maps: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """What a probe gives for the samples' maps, (n, c, h, w), as it is kept, and its refits where it tells them.

        Raises PluginError where either is not of these samples.
        """
        assert self.folds is not None
        n, refit = len(self.samples), None
        if probe.against == "reference":
            values = probe.compare(maps, self.reference_maps, self.samples, self.folds)
        else:
            values, refit = probe.judge(maps, self.samples, self.folds)
        found = probe.stored(values)
        if len(found) != n:
            raise PluginError(f"Probe {probe.name!r} gives {len(found)} rows for {n} samples.")
        if refit is not None and refit.shape not in ((n,), (n, 1 + SKETCHES)):
            raise PluginError(
                f"Probe {probe.name!r} tells refits of shape {refit.shape}; (n,) is wanted, or with sketches by "
                "`gate.probe.random_signs`."
            )
        return found, refit

    def comparing(self, what: Compares) -> list[Metric]:
        """The metrics that compare features, predictions, images or whole passes."""
        return [m for m in self.metrics if m.compares == what]

    @property
    def shared(self) -> dict[str, Tensor]:
        """Tensors that every technique is measured with, by name; those that lie on the disk are out of reach."""
        shelves = {
            "the reference prediction": self.reference.prediction,
            "the reference x0_hat": self.reference.x0,
        }
        shelves |= {f"the reference features of {layer}": s for layer, s in self.reference.features.items()}
        held = {name: shelf.held for name, shelf in shelves.items()}
        return {"x0": self.x0, **{name: tensor for name, tensor in held.items() if tensor is not None}}

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Noise levels as timesteps of the backbone's schedule."""
        return self.config.timesteps or self.config.levels(self.backbone.schedule)

    @property
    def measures(self) -> dict[str, Measure]:
        """Metrics and probes by name."""
        return {m.name: m for m in (*self.metrics, *self.probes)}

    def plan(self, technique: Technique, batch_size: int = 0) -> Plan:
        """Every pass of a technique in this screening, the reference through it first."""
        seeds = 1 if technique.seedless else self.config.seeds
        return Plan(
            self.backbone,
            technique,
            self.samples,
            self.timesteps,
            tuple(self.config.seed + s for s in range(seeds)),
            self.layers,
            batch_size or self.batch_size,
            self.x0,
            clean=True,
            outputs=bool(self.comparing("prediction") or self.comparing("pass")),
        )


def open_bench(
    config: ScreenConfig,
    *,
    scratch: Path | None = None,
    log: Log = lambda _: None,
    paced: Paced = lambda *_: None,
    lenient: bool = False,
) -> Bench:
    """The bench of a configuration, and of nothing else: whoever has the configuration can make the same one.

    lenient: probes that the samples have no truth for are left out, though they were named. Noise levels become
    timesteps of the schedule. Raises UsageError, ConfigurationError, MissingWeightsError.
    """
    backbone = load_backbone(
        config.backbone,
        device=config.device,
        dtype=config.dtype,
        revision=config.revision,
        image_size=config.image_size,
        offload=config.offload,
        pipeline=config.pipeline,
    )
    levels = config.levels(backbone.schedule)
    config = config.model_copy(update={"timesteps": levels, "alpha_bar": None, "sigma": None})
    samples = load_for(config, size=backbone.image_size)
    if len(samples) < MIN_SAMPLES:
        raise ConfigurationError(
            f"A screening needs {MIN_SAMPLES} images or more; {samples.name} has {len(samples)}."
        )
    metrics = [
        m
        for m in select_plugins("metric", config.metrics)
        if _served(m, backbone, samples, _unnamed(config.metrics), log)
    ]
    probes = [
        p
        for p in select_plugins("probe", config.probes)
        if _served(p, backbone, samples, lenient or _unnamed(config.probes), log)
    ]
    return prepare(backbone, samples, config, metrics, probes, scratch=scratch, log=log, paced=paced)


def prepare(
    backbone: Backbone,
    samples: SampleSet,
    config: ScreenConfig,
    metrics: Sequence[Metric],
    probes: Sequence[Probe],
    *,
    scratch: Path | None = None,
    log: Log = lambda _: None,
    paced: Paced = lambda *_: None,
) -> Bench:
    """Latents, folds and the vanilla reference at t = 0, once for all techniques.

    paced: is told the pace of the reference pass while it runs, once it is known.

    Where memory runs out in the reference pass, its batch is halved, and the techniques begin with what was left of it.
    """
    layers = resolve_layers(config.layers, backbone.layer_paths)
    backbone.calibrate(layers)
    size = usual_batch(backbone) if config.batch_size == "auto" else config.batch_size
    n = len(samples)
    x0 = torch.cat([backbone.encode(pixels(samples[i : i + size].samples)) for i in range(0, n, size)])
    folds = make_folds(samples, n_folds=config.folds, seed=config.seed) if probes else None
    plan = Plan(backbone, Technique(), samples, (), (), layers, size, x0, clean=True)
    size, reference = halving(
        lambda rows: (rows, _reference(dataclasses.replace(plan, batch_size=rows), scratch, paced)),
        size,
        "the reference pass",
        "use a smaller --image-size, --dtype float16 or --offload",
        log=log,
    )
    first = reference(slice(PCA_SAMPLES)).features
    return Bench(
        backbone,
        samples,
        x0,
        config,
        layers,
        tuple(metrics),
        tuple(probes),
        folds,
        size,
        reference,
        pca_basis(first[pca_layer(first)]),
        Memo(backbone),
        scratch,
    )


def _unnamed(asked: tuple[str, ...]) -> bool:
    return asked in (("all",), ("standard",))


def _reference(plan: Plan, scratch: Path | None, paced: Paced) -> Reference:
    """Every clean pass of the plain backbone, onto shelves. The second batch tells the pace: the first one warms up."""
    n = len(plan.samples)
    reference = Reference(
        Shelf(n, folder=scratch),
        Shelf(n, folder=scratch),
        {layer: Shelf(n, folder=scratch) for layer in plan.layers},
    )
    began, told = time.perf_counter(), min(n, 2 * plan.batch_size)
    for passed in stream(plan):
        reference.prediction.put(passed.rows, passed.response.prediction)
        reference.x0.put(passed.rows, passed.response.x0)
        for layer, feature in passed.response.features.items():
            reference.features[layer].put(passed.rows, feature)
        if passed.rows.stop == told:
            paced(plan.backbone, n, (time.perf_counter() - began) / (passed.rows.stop - passed.rows.start))
        began = time.perf_counter()
    return reference


def _served(measure: Metric | Probe, backbone: Backbone, samples: SampleSet, lenient: bool, log: Log) -> bool:
    """Whether samples and backbone have what it reads; what is named is refused, of `standard` and `all` left out."""
    kind, needs, reason = (
        ("metric", measure.needs, "")
        if isinstance(measure, Metric)
        else ("probe", frozenset({measure.needs}), measure.refuses(backbone))
    )
    present = {"labels": samples.has_labels, "masks": samples.has_masks}
    missing = [what for what, there in present.items() if what in needs and not there]
    named = not lenient
    if missing and named:
        raise ConfigurationError(
            f"The {kind} {measure.name} needs {missing[0]}, and {samples.name} has none; add them."
        )
    if reason and named:
        raise ConfigurationError(f"The {kind} {measure.name} cannot be asked: {reason} Leave it out.")
    if missing or reason:
        log(f"{kind} {measure.name} is left out: {reason or f'{samples.name} has no {missing[0]}'}")
    return not (missing or reason)
