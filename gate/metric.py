"""What a metric is: a number per sample that says how far a feature, a prediction or an image has shifted."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from gate.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["feature", "prediction", "image"]
Direction = Literal["lower", "higher"]

_METHODS: dict[str, str] = {"feature": "shift", "prediction": "error", "image": "distance"}


class Metric:
    """A measure of content shift. A subclass states its facts and writes the one method of its kind.

    name: what the command line calls it. summary: one line. source: paper and equation. unit: what the stored
    number counts. direction: which way is better; every metric of ours stores a shift, so lower is closer.
    kind: what is compared, and so which method is called: "feature" -> `shift`, "prediction" -> `error`,
    "image" -> `distance`. scale_invariant: whether multiplying the measured side alone by a positive number
    leaves the value as it is; where it does not, a technique that shrinks its features can look closer than
    it is. weakness: what the metric cannot see or is fooled by, one sentence for reports.

    Every method returns one number per sample that depends on that sample alone, never on the rest of the
    batch, and passes NaN on: a metric that hides a broken feature is worse than none.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    direction: ClassVar[Direction] = "lower"
    kind: ClassVar[Kind] = "feature"
    scale_invariant: ClassVar[bool] = False
    weakness: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            return  # a class between Metric and the metrics states its facts later
        missing = [fact for fact in ("summary", "source", "unit", "weakness") if not getattr(cls, fact)]
        if missing:
            raise PluginError(
                f"Metric {cls.name!r} does not state its {' or '.join(missing)}; set it on the class."
            )
        if cls.kind not in _METHODS or cls.direction not in ("lower", "higher"):
            raise PluginError(
                f"Metric {cls.name!r} has kind {cls.kind!r} and direction {cls.direction!r}; kind is one of "
                f"{', '.join(_METHODS)}, direction 'lower' or 'higher'."
            )
        method = _METHODS[cls.kind]
        if getattr(cls, method) is getattr(Metric, method):
            raise PluginError(f"Metric {cls.name!r} is of kind {cls.kind!r} and must define `{method}`.")

    def shift(self, features: Tensor, reference: Tensor) -> Tensor:
        """How far each feature lies from its reference.

        features, reference: (b, c, h, w), one layer of b samples. Returns (b,) float32 or float64, >= 0; 0 is
        no shift.
        """
        raise self._wrong_kind("shift")

    def error(self, *, eps: Tensor, eps_hat: Tensor, x0: Tensor, x0_hat: Tensor) -> Tensor:
        """How far each prediction lies from the truth.

        All (b, c, h, w), in latent units: the noise that was added and the noise that was predicted, the
        clean latent and its reconstruction. Returns (b,) float32 or float64, >= 0.
        """
        raise self._wrong_kind("error")

    def distance(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        """How far each reconstruction lies from its image.

        Both (b, 3, h, w) float RGB in [0, 1]. Returns (b,), >= 0.
        """
        raise self._wrong_kind("distance")

    def _wrong_kind(self, asked: str) -> PluginError:
        return PluginError(
            f"Metric {self.name!r} is of kind {self.kind!r}: it has `{_METHODS[self.kind]}`, not `{asked}`."
        )


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
