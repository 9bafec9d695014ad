"""The numbers of one technique, and the fold that makes them from a stream of passes."""

# long: one fold, additive over samples; its parts share every axis
from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gate.backbone import pixels
from gate.calls import digest
from gate.carried import IMAGES, Grids
from gate.metric import Metric, Pass, implied_eps
from gate.noise_path import walk
from gate.passes import Passed, Plan, reconstruct, single_pass
from gate.probe import probe_map
from gate.request import Request, Response
from gate.screening.pictures import PCA_SAMPLES, pca_image, pca_layer
from gate.screening.shelf import IN_MEMORY, Shelf

if TYPE_CHECKING:
    from gate.screening.bench import Bench

Singles = NDArray[np.float32]
Cell = tuple[int, int]  # of a timestep and a noise seed, by position
# what scores.safetensors calls the tables, and what it says of costs
TABLES = {"shift": "shift", "prediction": "prediction", "probe": "counts", "refit": "refit", "image": "image"}
COSTS = ("per_image", "per_pass", "ms", "fit_seconds")
SOME = ("carried", "unseen")  # arrays that not every technique has


@dataclass
class Measured:
    """The numbers of one technique. t timesteps, s noise seeds, l layers, n samples, k classes, m image samples.

    shift: {metric or metric@own: (t, s, l, n)}. prediction: {metric of predictions or whole passes: (t, s, n)}. counts:
    {probe: (t, s, n, k, k)}, or whatever columns it gives. refit: {probe: (t, s, n) or (t, s, n, 1 + r)}, as
    `Probe.judge` gives them. image: {metric: (m,)}. A metric of several columns adds them as a last axis.
    reconstructions: (m, H, W, 3) uint8. pca: (PCA_SAMPLES, h, w, 3) float in [0, 1]. scale: RMS of the features, (l,).
    carried: the three of `gate.carried.Carried`, (t, 3), of the first seed; unseen: those of `Unseen`, (3,), where a
    stranger's technique was asked. state: what `fit` learned, by key (`gate.runs.states.packed`). per_image, per_pass:
    calls of the denoiser, counted, for the conditioning of an image and for each of its passes. ms: milliseconds per
    image and pass. fit_seconds: of fitting. A field is stored and read back by its type alone.
    """

    shift: dict[str, Singles] = field(default_factory=dict)
    prediction: dict[str, Singles] = field(default_factory=dict)
    counts: dict[str, NDArray[Any]] = field(default_factory=dict)
    refit: dict[str, Singles] = field(default_factory=dict)
    image: dict[str, Singles] = field(default_factory=dict)
    reconstructions: NDArray[np.uint8] | None = None
    pca: Singles | None = None
    scale: Singles | None = None
    carried: Singles | None = None
    unseen: Singles | None = None
    state: dict[str, NDArray[Any]] = field(default_factory=dict)
    per_image: float = 0.0
    per_pass: float = 0.0
    ms: float = 0.0
    fit_seconds: float = 0.0

    @property
    def calls(self) -> float:
        """Denoiser calls to extract one image once."""
        return self.per_image + self.per_pass


def _wide(metric: Metric) -> tuple[int, ...]:
    return (metric.columns_each,) if metric.columns_each > 1 else ()


def _mean_square(f: Tensor) -> Tensor:
    """float64, without a copy of the feature in it."""
    norm: Tensor = torch.linalg.vector_norm(f, dtype=torch.float64)
    return norm.square() / f.numel()


class Tally:
    """The fold of a technique's stream over some rows of the samples; tallies of neighbouring rows can be joined.

    Everything is additive over samples but for the probes, which learn from all of them: their maps wait on shelves
    until `measured`.
    """

    def __init__(self, bench: Bench, plan: Plan) -> None:
        self.bench, self.plan = bench, plan
        start, stop, _ = plan.rows.indices(len(plan.samples))
        self.start, self.n = start, stop - start
        config, seeds = bench.config, len(plan.seeds)
        self.out = Measured()
        shape = (len(plan.timesteps), seeds, len(plan.layers), self.n)
        for metric in bench.comparing("feature"):
            for name in (metric.name, f"{metric.name}@own"):
                self.out.shift[name] = np.full((*shape, *_wide(metric)), np.nan, np.float32)
        for metric in (*bench.comparing("prediction"), *bench.comparing("pass")):
            self.out.prediction[metric.name] = np.full(
                (*shape[:2], self.n, *_wide(metric)), np.nan, np.float32
            )
        self.maps: dict[tuple[str, Cell], Shelf] = {}  # "": the features', for all probes that read those
        self.squares = torch.zeros(len(plan.layers), dtype=torch.float64)
        self.passes = self.call_rows = self.condition_rows = self.seconds = 0.0
        self.own: dict[str, Tensor] = {}
        self.reference: dict[str, Tensor] = {}
        self.own_rows = slice(0, 0)
        self.second: dict[tuple[object, ...], Response] = {}  # the second pass that was asked last
        self.grids = [Grids() for _ in plan.timesteps]
        self.images: list[Tensor] = []
        self.walked: dict[str, list[Singles]] = {metric.name: [] for metric in bench.comparing("path")}
        self.generated = min(config.image_samples, len(plan.samples))
        self.starts_clean = False

    def add(self, passed: Passed) -> None:
        """One pass; the reference of a batch comes before its noised passes."""
        n = len(passed.request.batch)
        if passed.is_reference:
            self.own, self.own_rows = passed.response.features, passed.rows
            self.reference = self.bench.reference(passed.rows).features  # the same tensors for all its passes
            calls, seconds = passed.conditioned
            self.condition_rows += calls * n
            self.seconds += seconds
            self._reconstruct(passed)
            return
        assert self.own_rows == passed.rows, "a noised pass came without its reference"
        i = self.plan.timesteps.index(int(passed.request.t[0]))
        s = self.plan.seeds.index(passed.request.seed)
        rows = slice(passed.rows.start - self.start, passed.rows.stop - self.start)
        self._shift(passed, (i, s), rows)
        self._error(passed, (i, s), rows)
        features = passed.response.features
        self._read(passed, (i, s), rows)
        if s == 0 and self.start == 0 and passed.rows.start < IMAGES:
            self.grids[i].add(features)
        self.squares += n * torch.stack([_mean_square(f) for f in features.values()]).cpu()
        if passed.rows.start == 0 and s == 0 and i == len(self.plan.timesteps) - 1:
            self.out.pca = pca_image(features[pca_layer(features)][:PCA_SAMPLES], self.bench.pca_basis)
        self.passes += n
        self.call_rows += passed.calls * n
        self.seconds += passed.seconds

    def _read(self, passed: Passed, cell: Cell, rows: slice) -> None:
        """What the probes will learn from: one map for those of features, a reading for each of the others."""
        if any(probe.reads == "features" for probe in self.bench.probes):
            self._shelf("", cell).put(rows, probe_map(passed.response.features))
        for probe in self.bench.probes:
            if probe.reads == "passes" and (cell == (0, 0) or not probe.once):
                self._shelf(probe.name, cell).put(rows, probe.read(self._seen(passed, ("second-pass",))))

    def _shelf(self, of: str, cell: Cell) -> Shelf:
        if (of, cell) not in self.maps:
            cells = len(self.plan.timesteps) * len(self.plan.seeds)
            self.maps[of, cell] = Shelf(self.n, folder=self.bench.scratch, limit=IN_MEMORY // cells)
        return self.maps[of, cell]

    def _shift(self, passed: Passed, cell: Cell, rows: slice) -> None:
        for j, layer in enumerate(self.plan.layers):
            feature = passed.response.features[layer].float()
            for key, f_ref in (("", self.reference[layer].float()), ("@own", self.own[layer].float())):
                for metric in self.bench.comparing("feature"):
                    shift = metric.rows(metric.shift(feature, f_ref), len(feature))
                    self.out.shift[metric.name + key][(*cell, j, rows)] = shift

    def _error(self, passed: Passed, cell: Cell, rows: slice) -> None:
        """Of the noise that the reconstruction implies at the base latent: comparable whatever latent was used."""
        if not self.plan.outputs:
            return
        request, x0_hat = passed.request, passed.response.x0
        x0 = request.batch.x0
        eps_hat = implied_eps(request, passed.response)
        for metric in self.bench.comparing("prediction"):
            error = metric.error(eps=request.eps, eps_hat=eps_hat, x0=x0, x0_hat=x0_hat)
            self.out.prediction[metric.name][(*cell, rows)] = metric.rows(error, len(x0))
        for metric in self.bench.comparing("pass"):
            found = metric.measure(self._seen(passed, metric.needs))
            self.out.prediction[metric.name][(*cell, rows)] = metric.rows(found, len(x0))

    def _seen(self, passed: Passed, needs: Collection[str]) -> Pass:
        """The whole pass; another one goes through the technique as it is attached, and is not counted.

        What one metric asked in this pass, the next is answered from, unless it takes gradients.
        """

        def made(request: Request) -> Response:
            with torch.set_grad_enabled("gradients" in needs):
                return single_pass(self.plan.technique, request, self.plan.layers)

        def again(request: Request) -> Response:
            if "gradients" in needs:
                return made(request)
            key = (digest(request), request.seed, request.origin, request.features, request.outputs)
            known = self.second.get(key) or made(request)
            self.second = {key: known}
            return known

        return Pass(
            passed.request,
            passed.response,
            self.reference,
            self.own,
            again if {"gradients", "second-pass"}.intersection(needs) else None,
            self.bench.samples[passed.rows].samples if {"labels", "masks"}.intersection(needs) else (),
        )

    def _reconstruct(self, passed: Passed) -> None:
        """The first image samples by img2img (paper, section 5.1): is the output more like the input?

        A technique that starts from the clean latent generates nothing: NaN, and a grey picture.
        """
        left = min(passed.rows.stop, self.generated) - passed.rows.start
        if left <= 0:
            return
        config = self.bench.config
        batch = self.plan.batch(slice(passed.rows.start, passed.rows.start + left))
        made = reconstruct(
            self.plan.technique,
            batch,
            passed.request.conditioning.rows(range(left)),
            strength=config.strength,
            steps=config.image_steps,
            seed=config.seed,
        )
        self.starts_clean |= made is None
        self.images.append(torch.full_like(pixels(batch.samples), 0.5) if made is None else made)
        for i in range(left if self.walked else 0):  # one at a time: a path is many images
            alone = self.plan.batch(slice(passed.rows.start + i, passed.rows.start + i + 1))
            frames = walk(
                self.plan.technique,
                alone,
                passed.request.conditioning.rows([i]),
                steps=config.image_steps,
                seed=config.seed,
            )
            for metric in self.bench.comparing("path"):
                self.walked[metric.name].append(metric.rows(metric.spread(frames), 1))

    @staticmethod
    def join(tallies: Iterable[Tally]) -> Tally:
        """One tally of all rows. tallies: of one technique, their rows end to end, in order."""
        first, *others = tallies
        for other in others:
            first._append(other)
        return first

    def _append(self, other: Tally) -> None:
        assert other.start == self.start + self.n, "tallies must lie end to end"
        n = self.n + other.n
        for tables in ("shift", "prediction"):
            ours, theirs = getattr(self.out, tables), getattr(other.out, tables)
            for key in ours:
                ours[key] = np.concatenate([ours[key], theirs[key]], axis=3 if tables == "shift" else 2)
        for which, theirs_ in other.maps.items():
            joined = Shelf(n, folder=self.bench.scratch, limit=theirs_.limit)
            for shelf, at in ((self.maps[which], 0), (theirs_, self.n)):
                for i in range(0, shelf.n, self.plan.batch_size):
                    part = shelf.get(slice(i, min(i + self.plan.batch_size, shelf.n)))
                    joined.put(slice(at + i, at + i + len(part)), part)
            self.maps[which] = joined
        for name in ("squares", "passes", "call_rows", "condition_rows", "seconds", "images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, found in other.walked.items():
            self.walked[name] += found
        self.out.pca = other.out.pca if self.out.pca is None else self.out.pca
        self.starts_clean |= other.starts_clean
        self.n = n

    def measured(self) -> Measured:
        """The numbers, when all rows are there: the probes learn here."""
        bench, out = self.bench, self.out
        out.per_image = self.condition_rows / self.n
        out.per_pass = self.call_rows / self.passes
        out.ms = 1000 * self.seconds / self.passes
        out.scale = (self.squares / self.passes).sqrt().numpy().astype(np.float32)
        carried = [grids.carried(bench.x0) for grids in self.grids]
        out.carried = np.array([dataclasses.astuple(c) for c in carried], np.float32).reshape(-1, 3)
        self._judge_images()
        cells = (len(self.plan.timesteps), len(self.plan.seeds))
        for probe in bench.probes:
            source = "" if probe.reads == "features" else probe.name
            for (i, s), shelf in ((cell, shelf) for (of, cell), shelf in self.maps.items() if of == source):
                found, refit = bench.judged(probe, shelf.array())
                kind = np.int16 if probe.figure else np.float32
                counts = out.counts.setdefault(probe.name, np.zeros((*cells, *found.shape), kind))
                counts[i, s] = found
                if refit is not None:
                    changes = out.refit.setdefault(probe.name, np.zeros((*cells, *refit.shape), np.float32))
                    changes[i, s] = refit
            if probe.once:  # its one reading stands for every pass
                for table in (out.counts, out.refit):
                    if probe.name in table:
                        table[probe.name][:] = table[probe.name][0, 0]
        if cells[1] < bench.config.seeds:  # a technique without a seed gives the same for each
            for table in (out.shift, out.prediction, out.counts, out.refit):
                tables: dict[str, NDArray[Any]] = table
                for key, values in tables.items():
                    tables[key] = np.repeat(values, bench.config.seeds, axis=1)
        return out

    def _judge_images(self) -> None:
        if not self.images:
            return
        made = torch.cat(self.images)
        truth = pixels(self.plan.samples[: len(made)].samples)
        self.out.image = {
            m.name: m.rows(m.distance(truth, made), len(made))
            * np.float32(np.nan if self.starts_clean else 1)
            for m in self.bench.comparing("image")
        }
        self.out.image.update({name: np.concatenate(found) for name, found in self.walked.items()})
        self.out.reconstructions = (made.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
