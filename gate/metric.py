"""What a metric is: a number per sample that says how far a feature, a prediction or an image has shifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from gate.errors import PluginError
from gate.measure import Direction, Measure, check_facts

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Request, Response
    from gate.sample import Sample

__all__ = [
    "Compares",
    "Direction",
    "Metric",
    "Need",
    "Pass",
    "as_float",
    "implied_eps",
    "length",
    "same_shape",
]

T = TypeVar("T")
Singles = npt.NDArray[np.float32]
Compares = Literal["feature", "prediction", "image", "pass", "path"]
Need = Literal["features", "predictions", "latents", "gradients", "second-pass", "labels", "masks"]

NEEDS = ("features", "predictions", "latents", "gradients", "second-pass", "labels", "masks")
ONLY_OF_PASSES = frozenset({"gradients", "second-pass", "labels", "masks"})
_METHODS: dict[str, str] = {
    "feature": "shift",
    "prediction": "error",
    "image": "distance",
    "pass": "measure",
    "path": "spread",
}
_DEFAULT_NEEDS: dict[str, frozenset[Need]] = {
    "feature": frozenset({"features"}),
    "prediction": frozenset({"predictions", "latents"}),
    "image": frozenset(),
    "path": frozenset(),
    "pass": frozenset({"features", "predictions", "latents"}),
}


@dataclass(frozen=True, eq=False)
class Pass:
    """One noised pass of a batch, for the metrics that look at all of it.

    request: as it was before the technique saw it; `request.batch.x0` are the latents. response: the technique's.
    reference, own: {layer: (b, c, h, w)}, F_ref without and through the technique. again: another pass through the
    same technique, at whatever request, for a metric that needs a "second-pass" (None else); neither its calls nor its
    time are the technique's. Its gradients are on where the metric needs "gradients". samples: with all that is known
    of them, for a metric that needs "labels" or "masks"; the request's are as the technique may see them.
    """

    request: Request
    response: Response
    reference: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    again: Callable[[Request], Response] | None = None
    samples: tuple[Sample, ...] = ()


def implied_eps(request: Request, response: Response) -> Tensor:
    """eps - (a_t / s_t) (x0_hat - x0), (b, c, h, w): the noise that a reconstruction implies at `request`, comparable
    whatever latent it was made from."""
    x0 = request.batch.x0
    a, s = request.batch.backbone.schedule.coefficients(request.t, x0)
    return request.eps - a / s * (response.x0 - x0)


class Metric(Measure):
    """A measure of content shift. A subclass states its facts and writes the one method of what it compares.

    name: what the command line calls it. summary: one line. source: paper and equation. unit: what the stored number
    counts. direction, range: which way is better, and what it can be (`gate.measure.Measure`: the better end is
    finite). compares: what is looked at, and so which method is called: "feature" -> `shift`, "prediction" ->
    `error`, "image" -> `distance`, "pass" -> `measure`, "path" -> `spread`. needs: of "features", "predictions",
    "latents", "gradients", "second-pass", "labels", "masks"; what it compares settles the usual ones. columns_each:
    how many numbers a sample has, where the figure is another function of sums (`error_of_sums`) or of the set
    (`error_of_set`). scale_invariant: whether multiplying the measured side alone by a positive number leaves the
    value as it is; where it does not, a technique that shrinks its features can look closer than it is. weakness:
    what the metric cannot see or is fooled by, one sentence for reports.

    Every method returns one number per sample, (b,), or one row of columns, (b, m), that depends on that sample
    alone, never on the rest of the batch, and passes NaN on: a metric that hides a broken feature is worse than none.
    """

    unit: ClassVar[str] = ""
    compares: ClassVar[Compares] = "feature"
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    columns_each: ClassVar[int] = 1
    scale_invariant: ClassVar[bool] = False
    weakness: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            return  # a class between Metric and the metrics states its facts later
        if cls.compares not in _METHODS:
            raise PluginError(
                f"Metric {cls.name!r} compares {cls.compares!r}; it is one of {', '.join(_METHODS)}."
            )
        check_facts(cls, "Metric", ("summary", "source", "unit", "weakness"))
        if cls.needs is Metric.needs:
            cls.needs = _DEFAULT_NEEDS[cls.compares]
        if not cls.needs <= set(NEEDS):
            raise PluginError(
                f"Metric {cls.name!r} needs {', '.join(sorted(cls.needs - set(NEEDS)))}; there is {', '.join(NEEDS)}."
            )
        if cls.needs & ONLY_OF_PASSES and cls.compares != "pass":
            raise PluginError(
                f"Metric {cls.name!r} compares {cls.compares!r}: only one that compares 'pass' is given gradients, a "
                "second pass, or the samples with their labels and masks."
            )
        method = _METHODS[cls.compares]
        if getattr(cls, method) is getattr(Metric, method):
            raise PluginError(f"Metric {cls.name!r} compares {cls.compares!r} and must define `{method}`.")

    def shift(self, features: Tensor, reference: Tensor) -> Tensor:
        """How far each feature lies from its reference.

        features, reference: (b, c, h, w), one layer of b samples. Returns (b,) float32 or float64 in `range`, or
        (b, m) columns.
        """
        raise self._has_another("shift")

    def error(self, *, eps: Tensor, eps_hat: Tensor, x0: Tensor, x0_hat: Tensor) -> Tensor:
        """How far each prediction lies from the truth.

        All (b, c, h, w), in latent units: the noise that was added and the noise that was predicted, the
        clean latent and its reconstruction. Returns (b,) float32 or float64 in `range`, or (b, m) columns.
        """
        raise self._has_another("error")

    def distance(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """How far each reconstruction lies from its image.

        Both (b, 3, h, w) float RGB in [0, 1]. Returns (b,) in `range`, or (b, m) columns.
        """
        raise self._has_another("distance")

    def spread(self, frames: Tensor) -> Tensor:
        """How unevenly what is generated changes while its noise is moved from one draw to another.

        frames: (b, k, 3, h, w) float RGB in [0, 1], k equal steps of the noise (`gate.noise_path`). Returns (b,) in
        `range`, or (b, m) columns.
        """
        raise self._has_another("spread")

    def measure(self, seen: Pass) -> Tensor:
        """What a whole pass shows, one number for all its layers. Returns (b,) in `range`, or (b, m) columns."""
        raise self._has_another("measure")

    def rows(self, made: Tensor, n: int) -> Singles:
        """What one of the methods returned, as stored: (n,) or (n, columns) float32. Refuses another shape or range."""
        shape = (n,) if self.columns_each == 1 else (n, self.columns_each)
        if tuple(made.shape) != shape:
            raise PluginError(
                f"Metric {self.name!r} gives {tuple(made.shape)} for {n} samples, not {shape}: a number each, or the "
                "columns that it states."
            )
        values: Singles = self.stored(made.detach().float().cpu().numpy())
        return values

    def _has_another(self, asked: str) -> PluginError:
        return PluginError(
            f"Metric {self.name!r} compares {self.compares!r}: it has `{_METHODS[self.compares]}`, not `{asked}`."
        )


def kept(tensor: Tensor, name: str, make: Callable[[Tensor], T]) -> T:
    """make(tensor), once while the tensor lives and is not written to. name: of what is made, one for each formula.

    A reference is the same tensor in every pass of a batch, and a feature beside both references.
    """
    if tensor.is_inference():  # it does not say whether it was written to
        return make(tensor)
    held = vars(tensor).setdefault("_gate_kept", {})
    key = name, tensor._version
    if key not in held:
        held[key] = make(tensor)
    made: T = held[key]
    return made


def as_float(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float32, or float64 where they are that: half precision is for storage, not for sums."""
    import torch

    return tuple(t if t.dtype in (torch.float32, torch.float64) else t.float() for t in tensors)


def same_shape(a: Tensor, b: Tensor, what: str) -> None:
    """Refuse two batches that do not match, before broadcasting hides it."""
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"{what} must both be (b, c, h, w) of one shape, not {tuple(a.shape)} and {tuple(b.shape)}"
        )


def length(f: Tensor) -> Tensor:
    """Euclidean length of the feature vector at each position, (b, c, h, w) -> (b, 1, h, w).

    The same as `f.norm(dim=1, keepdim=True)`, which takes ten times as long over a strided axis on a CPU.
    """
    return f.square().sum(dim=1, keepdim=True).sqrt()
