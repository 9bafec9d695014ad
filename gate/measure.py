"""Measuring one technique: every pass of it over shared samples, noise, references; and nothing else.

Everything that does not depend on the technique is computed once, in `prepare`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gate.backbone import Backbone, pixels, resolve_layers
from gate.config import ScreenConfig
from gate.metric import Metric
from gate.probe import Folds, Probe, make_folds, probe_map
from gate.request import Batch, Conditioning, Request, Response
from gate.sample import SampleSet
from gate.technique import Memo, Technique, run

Array = NDArray[np.float32]
Tick = Callable[[int], None]
PCA_SAMPLES = 2


@dataclass
class Measured:
    """The numbers of one technique. t timesteps, s noise seeds, l layers, n samples, k classes, m image samples.

    shift: {metric or metric@own: (t, s, l, n)}. prediction: {metric: (t, s, n)}. counts: {probe: (t, s, n, k, k)}.
    image: {metric: (m,)}. reconstructions: (m, H, W, 3) uint8. pca: (PCA_SAMPLES, h, w, 3) float in [0, 1].
    scale: RMS of the features, (l,). calls: denoiser calls to extract one image once, counted; per_image, per_pass: as
    declared. ms: milliseconds per image and pass.
    """

    shift: dict[str, Array] = field(default_factory=dict)
    prediction: dict[str, Array] = field(default_factory=dict)
    counts: dict[str, NDArray[np.int16]] = field(default_factory=dict)
    image: dict[str, Array] = field(default_factory=dict)
    reconstructions: NDArray[np.uint8] | None = None
    pca: Array | None = None
    scale: Array | None = None
    calls: float = 0.0
    per_image: float = 0.0
    per_pass: float = 0.0
    ms: float = 0.0
    fit_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Bench:
    """What all techniques share: samples, latents, folds, the chosen layers, metrics, probes and the reference.

    clean: the plain backbone at t = 0 without noise, all samples; its features are F_ref. memo: predictions that
    several techniques ask for.
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
    clean: Response | None = None
    memo: Memo = field(default_factory=Memo)
    pca_basis: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def reference(self, rows: slice) -> Response:
        """Rows of the clean pass."""
        assert self.clean is not None
        clean = self.clean
        return Response(
            clean.prediction[rows], clean.x0[rows], {k: v[rows] for k, v in clean.features.items()}
        )

    def of_kind(self, kind: str) -> list[Metric]:
        return [m for m in self.metrics if m.kind == kind]

    def batches(self, size: int, count: int | None = None) -> Iterator[tuple[slice, Batch]]:
        """Slices of the samples with their batches, in order."""
        total = len(self.samples) if count is None else count
        for i in range(0, total, size):
            rows = slice(i, min(i + size, total))
            yield (
                rows,
                self.backbone.batch(
                    self.samples[rows].samples,
                    self.x0[rows],
                    everyone=self.samples,
                    class_names=self.samples.classes,
                ),
            )


def auto_batch_size(backbone: Backbone) -> int:
    """A batch that keeps the processor busy without filling memory: 32 at 64 px, 4 at 512 px, GPUs four times that."""
    area = (backbone.image_size // 8) ** 2
    size = max(1, min(32, 16384 // area))
    return size if backbone.device.type == "cpu" else 4 * size


def prepare(
    backbone: Backbone,
    samples: SampleSet,
    config: ScreenConfig,
    metrics: Sequence[Metric],
    probes: Sequence[Probe],
) -> Bench:
    """Latents, folds and the vanilla reference at t = 0, once for all techniques."""
    layers = resolve_layers(config.layers, backbone.layer_paths)
    backbone.calibrate(layers)
    size = auto_batch_size(backbone) if config.batch_size == "auto" else config.batch_size
    x0 = torch.cat(
        [backbone.encode(pixels(samples[i : i + size].samples)) for i in range(0, len(samples), size)]
    )
    folds = make_folds(samples, n_folds=config.folds, seed=config.seed) if probes else None
    bench = Bench(backbone, samples, x0, config, layers, tuple(metrics), tuple(probes), folds, size)
    with torch.inference_mode():
        passes = [backbone.denoise(batch.clean_request(), layers) for _, batch in bench.batches(size)]
    clean = Response(
        torch.cat([p.prediction for p in passes]),
        torch.cat([p.x0 for p in passes]),
        {layer: torch.cat([p.features[layer] for p in passes]) for layer in layers},
    )
    basis = _pca_basis(clean.features[_pca_layer(clean.features)][:PCA_SAMPLES])
    return dataclasses.replace(bench, clean=clean, pca_basis=basis)


def measure(
    bench: Bench, technique: Technique, tick: Tick = lambda done: None, *, batch_size: int = 0
) -> Measured:
    """All numbers of one technique. tick(rows) is called as passes finish. Raises what the technique raises."""
    config, backbone, n = bench.config, bench.backbone, len(bench.samples)
    seeds = 1 if technique.seedless else config.seeds
    out = _empty(bench)
    start = time.perf_counter()
    technique.fit(backbone, bench.samples)
    out.fit_seconds = time.perf_counter() - start
    maps: dict[tuple[int, int], list[Array]] = {}
    conditionings: list[Conditioning] = []
    squares = torch.zeros(len(bench.layers), dtype=torch.float64)
    before, spent = backbone.calls, 0.0
    with torch.no_grad(), technique.attach(backbone):
        for rows, batch in bench.batches(batch_size or bench.batch_size):
            began = time.perf_counter()
            conditionings.append(technique.condition(batch.neutral, batch))
            spent += time.perf_counter() - began
            own, own_calls = _own_reference(bench, technique, batch, conditionings[-1], rows)
            before += own_calls
            for i, t in enumerate(config.timesteps):
                for s in range(seeds):
                    began = time.perf_counter()
                    request = batch.request(t, config.seed + s, conditionings[-1])
                    kept = bench.memo.saved
                    response = run(technique, request, bench.layers, memo=bench.memo)
                    spent += time.perf_counter() - began + bench.memo.saved - kept
                    _record(bench, out, response, own, batch, (i, s, rows))
                    if bench.probes:
                        maps.setdefault((i, s), []).append(_probe_maps(response))
                    squares += _mean_squares(response) * len(batch)
                    if rows.start == 0 and s == 0 and i == len(config.timesteps) - 1:
                        out.pca = _pca(bench, response)
                    tick(len(batch) * config.seeds // seeds)
        passes = n * len(config.timesteps) * seeds
        out.per_image, out.per_pass = technique.cost.per_image, technique.cost.per_pass
        out.calls = out.per_image + (backbone.calls - before - out.per_image * n) / passes
        out.ms = 1000 * spent / passes
        _reconstruct(bench, technique, Conditioning.join(conditionings), out, batch_size or bench.batch_size)
    out.scale = (squares / passes).sqrt().numpy().astype(np.float32)
    for (i, s), parts in maps.items():
        features = np.concatenate(parts)
        for probe in bench.probes:
            assert bench.folds is not None
            out.counts[probe.name][i, s] = probe.evaluate(features, bench.samples, bench.folds)
    tables: list[NDArray[Any]] = [*out.shift.values(), *out.prediction.values(), *out.counts.values()]
    for values in tables:
        values[:, seeds:] = values[:, :1]  # a technique without a seed gives the same for each
    return out


def _probe_maps(response: Response) -> Array:
    maps: Array = probe_map(response.features).float().cpu().numpy()
    return maps


def _mean_squares(response: Response) -> Tensor:
    """(l,) float64, mean square of each layer's features."""
    return torch.stack([f.double().square().mean() for f in response.features.values()]).cpu()


def _empty(bench: Bench) -> Measured:
    config, n = bench.config, len(bench.samples)
    shape = (len(config.timesteps), config.seeds, len(bench.layers), n)
    out = Measured()
    for metric in bench.of_kind("feature"):
        out.shift[metric.name] = np.full(shape, np.nan, np.float32)
        out.shift[f"{metric.name}@own"] = np.full(shape, np.nan, np.float32)
    for metric in bench.of_kind("prediction"):
        out.prediction[metric.name] = np.full((*shape[:2], n), np.nan, np.float32)
    for probe in bench.probes:
        k = len(bench.samples.classes if probe.needs == "labels" else bench.samples.mask_classes)
        out.counts[probe.name] = np.zeros((*shape[:2], n, k, k), np.int16)
    return out


def _own_reference(
    bench: Bench, technique: Technique, batch: Batch, conditioning: Conditioning, rows: slice
) -> tuple[dict[str, Tensor], int]:
    """F_ref_T, the clean pass through the technique, and what it cost in denoiser rows.

    Where the technique leaves backbone and conditioning alone, its plain call is the one that was made already.
    """
    before = bench.backbone.calls
    request = batch.clean_request(conditioning)
    untouched = conditioning is batch.neutral and not technique.attaches
    known = [(request, bench.reference(rows))] if untouched else []
    features = run(technique, request, bench.layers, known=known).features
    return features, bench.backbone.calls - before


def _record(
    bench: Bench,
    out: Measured,
    response: Response,
    own: dict[str, Tensor],
    batch: Batch,
    where: tuple[int, int, slice],
) -> None:
    i, s, rows = where
    reference = bench.reference(rows).features
    for metric in bench.of_kind("feature"):
        for j, layer in enumerate(bench.layers):
            feature = response.features[layer].float()
            for key, f_ref in (("", reference[layer]), ("@own", own[layer])):
                shift = metric.shift(feature, f_ref.float())
                out.shift[metric.name + key][i, s, j, rows] = shift.cpu().numpy()
    t = torch.full((len(batch),), bench.config.timesteps[i])
    eps = batch.noise(bench.config.seed + s)
    a, noise = bench.backbone.schedule.coefficients(t, batch.x0)
    # the noise that the reconstruction implies at the base latent: comparable whatever latent the technique used
    eps_hat = eps - a / noise * (response.x0 - batch.x0)
    for metric in bench.of_kind("prediction"):
        error = metric.error(eps=eps, eps_hat=eps_hat, x0=batch.x0, x0_hat=response.x0)
        out.prediction[metric.name][i, s, rows] = error.cpu().numpy()


def _reconstruct(
    bench: Bench, technique: Technique, conditioning: Conditioning, out: Measured, batch_size: int
) -> None:
    """img2img at high strength, deterministic DDIM: is the output more like the input? (paper, section 5.1).

    A technique that starts from the clean latent generates nothing: NaN, and a grey picture.
    """
    config, backbone = bench.config, bench.backbone
    count = min(config.image_samples, len(bench.samples))
    if not count:
        return
    top = max(1, math.ceil(config.strength * len(backbone.schedule)) - 1)
    images: list[Tensor] = []
    generated = True
    for rows, batch in bench.batches(batch_size, count):
        own = conditioning.rows(range(count)[rows])
        request = technique.start(batch.request(top, config.seed, own))
        if request.origin == "clean":  # no noise went in, so nothing is generated
            images.append(torch.full((len(batch), *pixels(batch.samples).shape[1:]), 0.5))
            generated = False
            continue
        state = request.with_(origin="sampled", features=False)

        def predict(x: Tensor, t: Tensor, state: Request = state) -> Tensor:
            return run(technique, state.with_(x_t=x, t=t, t_condition=t), ()).prediction

        x0 = backbone.schedule.ddim_sample(request.x_t, top, config.image_steps, predict)
        images.append(backbone.decode(x0).cpu())
    made = torch.cat(images)
    truth = pixels(bench.samples[:count].samples)
    out.image = {
        m.name: m.distance(truth, made).numpy().astype(np.float32) * (1 if generated else np.nan)
        for m in bench.of_kind("image")
    }
    out.reconstructions = (made.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def _pca_layer(features: dict[str, Tensor]) -> str:
    """The layer to look at: the finest grid, and of those the one with most channels."""
    return max(features, key=lambda k: (features[k].shape[-1], features[k].shape[1]))


def _pca_basis(reference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, three principal axes and the range of F_ref's scores, so that all pictures share one colour space."""
    x = reference.permute(0, 2, 3, 1).reshape(-1, reference.shape[1]).double()
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False)[2][:3]
    sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    axes = axes * sign
    scores = (x - mean) @ axes.T
    return mean, axes, torch.quantile(scores, 0.02, dim=0), torch.quantile(scores, 0.98, dim=0)


def pca_image(feature: Tensor, basis: tuple[Tensor, Tensor, Tensor, Tensor]) -> Array:
    """(b, c, h, w) -> (b, h, w, 3) in [0, 1] in the colours of the basis."""
    mean, axes, low, high = basis
    scores = (feature.permute(0, 2, 3, 1).double() - mean) @ axes.T
    image: Array = ((scores - low) / (high - low).clamp_min(1e-9)).clamp(0, 1).float().cpu().numpy()
    return image


def _pca(bench: Bench, response: Response) -> Array:
    assert bench.pca_basis is not None
    return pca_image(response.features[_pca_layer(response.features)][:PCA_SAMPLES], bench.pca_basis)


def reference_pca(bench: Bench) -> Array:
    """The input's own picture: F_ref in the shared colours."""
    assert bench.pca_basis is not None
    features = bench.reference(slice(PCA_SAMPLES)).features
    return pca_image(features[_pca_layer(features)], bench.pca_basis)
