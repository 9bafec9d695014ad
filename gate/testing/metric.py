"""Does a metric keep its contract? Every invariant of it, on pairs that drift apart."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import numpy as np

from gate.metric import Metric, Pass, Singles
from gate.testing.report import Broken, Check, CheckReport, examined

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Request, Response

N = 6
FRAMES = 10  # steps of a path
DRIFTS = (0.0, 0.1, 1.0)  # of the standard deviation: how far the measured side lies from the truth
TOLERANCE = 1e-4  # of the largest value: what another batch size may change in float32


def check_metric(metric: Metric | type[Metric] | str, backbone: Backbone | None = None) -> CheckReport:
    """Put a metric through every invariant of the contract.

    metric: an instance, a class, or a name as on the command line. backbone: for metrics of whole passes; the embedded
    one where none is given. What the metric raises becomes a failed finding.
    """
    from gate.registry import select_plugins

    def checks(made: Metric) -> list[tuple[str, Check]]:
        exam = _Passes(made, backbone) if made.compares == "pass" else _Pairs(made)
        found: list[tuple[str, Check]] = [
            ("states its facts", exam.facts),
            ("one row a sample, within its range", exam.rows),
            ("the direction is the one stated", exam.direction),
            ("independent of batch size and order", exam.independent),
            ("deterministic, and writes to nothing that it is given", exam.deterministic),
            ("errors of resamples", exam.resamples),
        ]
        if isinstance(exam, _Pairs):
            found += [
                ("passes NaN on, in its own sample", exam.nan),
                ("scale_invariant is true", exam.scale),
                ("takes half precision", exam.half),
                ("takes maps of any shape", exam.shapes),
            ]
        return found

    name = metric if isinstance(metric, str) else metric.name
    return examined(name, metric, lambda given: select_plugins("metric", (given,))[0], checks)


class _Examination(abc.ABC):
    """What holds for every metric. A subclass says how it is measured: `measured(drift)`, (N, ...)."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    @abc.abstractmethod
    def measured(self, drift: float, rows: slice = slice(None), turned: bool = False) -> Singles:
        """The rows that the metric gives at a drift; turned: samples in the opposite order, put back after."""

    @abc.abstractmethod
    def untouched(self) -> str:
        """Raises Broken where what the metric was given has changed."""

    def facts(self) -> str:
        metric = self.metric
        if not metric.name or "\n" in metric.summary:
            raise Broken("a metric needs a name and a summary of one line")
        return f"{metric.summary} ({metric.direction} is better, {metric.range[0]:g} to {metric.range[1]:g})"

    def rows(self) -> str:
        for drift in DRIFTS:
            if not np.isfinite(self.measured(drift)).all():
                raise Broken(f"gives NaN or infinity at a drift of {drift:g}")
        return f"{self.measured(DRIFTS[-1]).shape} of finite numbers"

    def errors(self, drift: float) -> float:
        """The error of all samples at a drift: 0 is perfect."""
        columns = self.metric.columns(self.measured(drift)[:, None])
        return float(self.metric.errors(columns, np.ones(len(columns)))[0])

    def direction(self) -> str:
        same, near, far = (self.errors(drift) for drift in DRIFTS)
        slack = TOLERANCE * max(abs(far), 1e-12)
        if self.metric.compares != "pass" and abs(same) > slack:
            raise Broken(
                f"the truth itself has an error of {same:.3g}, not 0: direction or range is not what it is"
            )
        if not same - slack <= near <= far + slack or far < -slack:
            raise Broken(
                f"errors do not grow with the drift: {same:.3g}, {near:.3g}, {far:.3g}; is it turned round?"
            )
        return f"errors {same:.3g}, {near:.3g}, {far:.3g} at drifts {', '.join(f'{d:g}' for d in DRIFTS)}"

    def independent(self) -> str:
        whole = self.measured(DRIFTS[-1])
        single = np.concatenate([self.measured(DRIFTS[-1], slice(i, i + 1)) for i in range(len(whole))])
        for other, what in (
            (single, "one sample at a time"),
            (self.measured(DRIFTS[-1], turned=True), "in another order"),
        ):
            worst = float(np.abs(other - whole).max() / max(float(np.abs(whole).max()), 1e-30))
            if not worst <= TOLERANCE:
                raise Broken(f"differs {what}, by {worst:.1e} of its largest value")
        return f"{len(whole)} samples one by one, together, and turned round"

    def deterministic(self) -> str:
        first = self.measured(DRIFTS[-1])
        if not np.array_equal(first, self.measured(DRIFTS[-1]), equal_nan=True):
            raise Broken("two measurements of the same tensors differ")
        return self.untouched()

    def resamples(self) -> str:
        columns = self.metric.columns(self.measured(DRIFTS[-1])[:, None])
        n = len(columns)
        drawn = np.stack([np.ones(n), np.eye(n)[0] * n, np.arange(n, dtype=float)])
        errors = self.metric.errors(columns, drawn)
        if errors.shape != (3, 1) or not np.isfinite(errors).all() or (errors < -1e-9).any():
            raise Broken(
                f"errors of three resamples are {errors.tolist()}: finite numbers of shape (3, 1), >= 0"
            )
        turned = self.metric.errors(columns[::-1], drawn[:, ::-1])
        if not np.allclose(turned, errors, rtol=1e-9):
            raise Broken("the order of the samples changes the error of a resample")
        return (
            f"{'sums' if self.metric.is_additive else 'sets'}: {', '.join(f'{e:.3g}' for e in errors[:, 0])}"
        )


class _Pairs(_Examination):
    """Metrics of two tensors (features, predictions or images), and of paths from one image to another."""

    def __init__(self, metric: Metric, shape: tuple[int, ...] = ()) -> None:
        import torch

        super().__init__(metric)
        usual = (N, 3, 32, 32) if metric.compares in ("image", "path") else (N, 24, 8, 8)
        shape = shape or usual
        generator = torch.Generator().manual_seed(0)
        self.truth, self.noise = (torch.rand(shape, generator=generator) for _ in range(2))
        self.given: list[tuple[Tensor, Tensor]] = []

    def side(self, drift: float) -> Tensor:
        import torch

        if self.metric.compares == "path":  # from one image to another, evenly without a drift
            shares = [(k / FRAMES) ** (1 + drift) for k in range(FRAMES + 1)]
            return torch.stack([self.truth + share * (self.noise - self.truth) for share in shares], dim=1)
        mixed = (self.truth + drift * (self.noise - 0.5)).clamp(0, 1)
        return mixed if self.metric.compares == "image" else self.truth + drift * self.noise

    def call(self, side: Tensor, truth: Tensor) -> Tensor:
        self.given += [(t, t.clone()) for t in (side, truth)]
        if self.metric.compares == "feature":
            return self.metric.shift(side, truth)
        if self.metric.compares == "prediction":
            return self.metric.error(eps=truth, eps_hat=side, x0=truth, x0_hat=side)
        if self.metric.compares == "path":
            return self.metric.spread(side)
        return self.metric.distance(truth, side)

    def measured(self, drift: float, rows: slice = slice(None), turned: bool = False) -> Singles:
        side, truth = self.side(drift)[rows], self.truth[rows]
        if turned:
            return self.metric.rows(self.call(side.flip(0), truth.flip(0)), len(side))[::-1]
        return self.metric.rows(self.call(side, truth), len(side))

    def untouched(self) -> str:
        if any(not tensor.equal(before) for tensor, before in self.given):
            raise Broken("it writes to its inputs")
        return "the same tensors give the same bits"

    def nan(self) -> str:
        side = self.side(DRIFTS[-1])
        side[1, 0, 2, 2] = float("nan")
        found = np.isnan(self.metric.rows(self.call(side, self.truth), N).reshape(N, -1)).any(axis=1)
        if found.tolist() != [i == 1 for i in range(N)]:
            raise Broken(f"a NaN in sample 1 gives NaN in {np.flatnonzero(found).tolist() or 'none'}")
        return "a NaN in one sample is NaN in its row alone"

    def scale(self) -> str:
        side = self.side(DRIFTS[-1])
        before, after = (self.metric.rows(self.call(f * side, self.truth), N) for f in (1.0, 0.5))
        same = np.allclose(before, after, rtol=1e-4)
        if self.metric.scale_invariant and not same:
            raise Broken("halving the measured side changes the value, and it says scale_invariant")
        return "halving changes nothing" if same else "halving changes the value, as stated"

    def half(self) -> str:
        import torch

        for dtype in (torch.float16, torch.bfloat16):
            made = self.call(self.side(DRIFTS[-1]).to(dtype), self.truth.to(dtype))
            if not bool(made.isfinite().all()) or made.dtype not in (torch.float32, torch.float64):
                raise Broken(
                    f"{dtype} gives {made.dtype}, finite: {bool(made.isfinite().all())}; sum in float32"
                )
        return "float16 and bfloat16 are summed in float32"

    def shapes(self) -> str:
        shapes = (
            [(2, 3, 17, 40), (2, 3, 64, 64)]
            if self.metric.compares in ("image", "path")
            else [(2, 40, 1, 1), (2, 1, 3, 9)]
        )
        for shape in shapes:
            other = _Pairs(self.metric, shape)
            if not np.isfinite(other.measured(DRIFTS[-1])).all():
                raise Broken(f"a map of {shape} gives NaN or infinity")
        return ", ".join(map(str, shapes))


class _Passes(_Examination):
    """Metrics of whole passes, on a backbone whose prediction is pushed away."""

    def __init__(self, metric: Metric, backbone: Backbone | None) -> None:
        super().__init__(metric)
        from gate.backbones import load_backbone
        from gate.data import load_data

        self.backbone = backbone or load_backbone("tiny", device="cpu", dtype="float32")
        self.samples = load_data("scenes-held-out", n=N, size=self.backbone.image_size)
        self.layers = tuple(list(self.backbone.layer_paths)[:1])
        self.weights = [(p, p._version) for p in self.backbone.denoiser.parameters()]

    def measured(self, drift: float, rows: slice = slice(None), turned: bool = False) -> Singles:
        import torch

        chosen = self.samples.samples[rows]
        batch = self.backbone.batch(chosen[::-1] if turned else chosen, everyone=self.samples)
        needs = self.metric.needs

        def again(request: Request, gradients: bool = "gradients" in needs) -> Response:
            with torch.set_grad_enabled(gradients):
                response = self.backbone.denoise(request, self.layers)
                return response.with_(prediction=response.prediction + drift * batch.noise(1))

        request = batch.request(50, 0)
        reference = again(batch.clean_request(), False).features
        wanted = again if needs & {"gradients", "second-pass"} else None
        known = chosen[::-1] if turned else chosen
        seen = Pass(request, again(request, False), reference, reference, wanted, tuple(known))
        found = self.metric.rows(self.metric.measure(seen), len(chosen))
        return found[::-1] if turned else found

    def untouched(self) -> str:
        if any(weight._version != before for weight, before in self.weights):
            raise Broken("it writes to the denoiser's weights")
        return "the same pass gives the same bits"

    def direction(self) -> str:
        errors = [self.errors(drift) for drift in DRIFTS]
        return f"errors {', '.join(f'{e:.3g}' for e in errors)}; which way is better no push can tell"
