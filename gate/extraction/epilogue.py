"""What becomes of an activation before it is stored: smaller grids, fewer channels, unit lengths, a narrower dtype.

The order is fixed: pool or resize, project, normalise, cast. Attention maps are cast alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gate.errors import ConfigurationError, NonFiniteError, UsageError, known_settings
from gate.extraction.kernels.epilogue import feature_epilogue

Projection = Literal["pca", "random"]
Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """How features are stored; the default is as they are, in float32.

    pool: k averages a layer over a k x k grid (torch's adaptive_avg_pool2d), 0 leaves its own; no layer is enlarged.
    resize: k brings every layer to k x k, bilinearly, without antialiasing (torch's interpolate, align_corners=False).
    vector: the mean over all positions, stored as (n, c). pool=1 is the same numbers as (n, c, 1, 1).
    project: channels afterwards, 0 for all. projection: "pca" keeps the directions in which a sample varies most,
    "random" keeps inner products on average. Both are fitted first (`fit`) and their state is stored with the
    features.
    normalise: length 1 over channels at each position; where all channels are 0 they stay 0.
    dtype: of what is stored.

    Raises UsageError for settings that contradict each other.
    """

    pool: int = 0
    resize: int = 0
    vector: bool = False
    normalise: bool = False
    project: int = 0
    projection: Projection = "pca"
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        for name in ("pool", "resize", "project"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"Setting {name!r} is a whole number, 0 for none, not {value!r}.")
        if sum(map(bool, (self.pool, self.resize, self.vector))) > 1:
            raise UsageError("Give one of pool, resize and vector: each decides the grid by itself.")
        for name, kinds in (("projection", get_args(Projection)), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in kinds:
                raise UsageError(
                    f"Setting {name!r} is one of {', '.join(kinds)}, not {getattr(self, name)!r}."
                )

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Epilogue:
        """The inverse of `describe`. Raises UsageError for unknown or wrong settings."""
        return cls(**known_settings(described, [f.name for f in fields(cls)], listing="gate extract --help"))

    def describe(self) -> dict[str, Any]:
        """All settings, as JSON."""
        return asdict(self)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]

    def shape(self, c: int, h: int, w: int) -> tuple[int, ...]:
        """Of what is stored of an image, for an activation (c, h, w)."""
        c = self.project or c
        if self.vector:
            return (c,)
        side = self.pool or self.resize
        return (c, side, side) if side else (c, h, w)

    def fit(self, features: Mapping[str, Tensor], maps: Collection[str] = ()) -> dict[str, Tensor]:
        """The projections of the layers of a sample, float32 on the CPU; {} where none is asked for.

        features: {layer: (n, c, h, w)}. maps: layers among them that are attention maps, and are not projected.

        Returns "LAYER/matrix" (d, c); for PCA also "LAYER/mean" (c,), and "LAYER/explained" (d,), the share of the
        sample's variance that each direction holds, largest first. Fitted to channel vectors at all positions, after
        the resampling that `apply` makes. Raises ConfigurationError where the sample or its channels are too few.
        """
        state: dict[str, Tensor] = {}
        if not self.project:
            return state
        for layer, x in features.items():
            if layer in maps:
                continue
            _check_grid(layer, x)
            if self.project > x.shape[1]:
                raise ConfigurationError(
                    f"Layer {layer!r} has {x.shape[1]} channels, fewer than --project {self.project}; "
                    "ask for fewer or leave the layer out."
                )
            if self.projection == "random":
                state[f"{layer}/matrix"] = random_projection(layer, x.shape[1], self.project)
                continue
            mean, matrix, explained = principal_directions(
                self._resampled(layer, x), self.project, layer=layer
            )
            state |= {f"{layer}/matrix": matrix, f"{layer}/mean": mean, f"{layer}/explained": explained}
        return state

    def apply(
        self,
        features: Mapping[str, Tensor],
        state: Mapping[str, Tensor] | None = None,
        maps: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Features as they are stored, on the device they came on.

        features: {layer: (n, c, h, w)}, any float dtype that a layer has. maps: layers among them that are attention
        maps (n, heads, positions, keys): these are cast. state: what `fit` returned.

        Returns {layer: (n, d, h', w')}, (n, d) with `vector`. On the CPU the batch size changes no bit.
        Raises NonFiniteError for NaN or infinity, also where a value is beyond the dtype, and ConfigurationError
        where a projection was not fitted or a layer does not fit.
        """
        done = {}
        for layer, x in features.items():
            y = x.to(self.torch_dtype) if layer in maps else self._finished(layer, x, state or {})
            _check_finite(layer, x, y)
            done[layer] = y
        return done

    def _finished(self, layer: str, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        matrix = mean = None
        if self.project:
            matrix, mean = state.get(f"{layer}/matrix"), state.get(f"{layer}/mean")
            if matrix is None:
                raise ConfigurationError(
                    f"No projection was fitted for layer {layer!r}; fit one on a sample that has it."
                )
            if matrix.shape != (self.project, x.shape[1]):
                raise ConfigurationError(
                    f"The projection of layer {layer!r} takes {matrix.shape[1]} channels to {matrix.shape[0]}, "
                    f"not {x.shape[1]} to {self.project}; fit it again."
                )
            matrix = matrix.to(x.device)
            mean = None if mean is None else mean.to(x.device)
        y = self._resampled(layer, x, matrix, mean, self.normalise, self.torch_dtype)
        return y.flatten(1) if self.vector else y

    def _resampled(
        self,
        layer: str,
        x: Tensor,
        matrix: Tensor | None = None,
        mean: Tensor | None = None,
        normalise: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        _check_grid(layer, x)
        if self.pool > min(x.shape[2:]):
            raise ConfigurationError(
                f"Layer {layer!r} is {x.shape[2]} x {x.shape[3]}, smaller than --pool {self.pool}, and pooling "
                f"only averages; use --resize {self.pool} or leave the layer out."
            )
        return feature_epilogue(
            x,
            cells=1 if self.vector else self.pool or self.resize,
            bilinear=self.resize > 0,
            matrix=matrix,
            mean=mean,
            normalise=normalise,
            dtype=dtype,
        )


def principal_directions(x: Tensor, d: int, *, layer: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """PCA of channel vectors at all positions: mean (c,), d directions (d, c), share of variance of each (d,).

    x: (n, c, h, w). The directions are those of the singular value decomposition of the centred vectors, found as
    eigenvectors of their covariance in float64: c x c numbers however large the sample. Of each, the largest entry is
    positive.
    Raises ConfigurationError where the sample does not vary in d directions, and NonFiniteError for NaN or infinity.
    """
    n, c, h, w = x.shape
    where = f"Layer {layer!r}" if layer else "The sample"
    if not x.isfinite().all():
        raise NonFiniteError(f"{where} holds NaN or infinity, to which nothing can be fitted; leave it out.")
    mean = torch.zeros(c, dtype=torch.float64)
    for image in x:
        mean += image.cpu().double().flatten(1).sum(1) / (n * h * w)
    covariance = torch.zeros(c, c, dtype=torch.float64)
    for image in x:
        centred = image.cpu().double().flatten(1) - mean[:, None]
        covariance += centred @ centred.T
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1).T
    # float32 features: what is a millionth of the largest deviation is their rounding
    rank = int((values > values[0] * 1e-12).sum()) if values[0] > 0 else 0
    if d > rank:
        raise ConfigurationError(
            f"{where} varies in {rank} directions over a sample of {n * h * w} positions, fewer than --project {d}; "
            "use a larger sample or fewer channels."
        )
    top = vectors[:d]
    largest = top.gather(1, top.abs().argmax(1, keepdim=True))
    matrix = top * largest.sign()
    return mean.float(), matrix.float().contiguous(), (values[:d] / values.sum()).float()


def random_projection(layer: str, c: int, d: int) -> Tensor:
    """Gaussian numbers of variance 1 / d, (d, c), from the layer's name: inner products stay the same on average."""
    seed = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "big") >> 1
    return torch.randn(d, c, generator=torch.Generator().manual_seed(seed)) / d**0.5


def _check_grid(layer: str, x: Tensor) -> None:
    """Raises ConfigurationError unless x is a feature map."""
    if x.ndim != 4:
        raise ConfigurationError(
            f"Layer {layer!r} is no feature map (n, channels, height, width) but {tuple(x.shape)}; leave it out."
        )


def _check_finite(layer: str, before: Tensor, after: Tensor) -> None:
    """Raises NonFiniteError where what would be stored is NaN or infinite, and says whether it was before."""
    if after.isfinite().all():
        return
    if not before.isfinite().all():
        raise NonFiniteError(
            f"Layer {layer!r} holds NaN or infinity; leave it out, or extract it in float32."
        )
    dtype = str(after.dtype).removeprefix("torch.")
    raise NonFiniteError(
        f"Layer {layer!r} holds values beyond {torch.finfo(after.dtype).max:,.0f}, the largest {dtype}; "
        "store it as bfloat16, or with --normalise."
        if after.dtype == torch.float16
        else f"Layer {layer!r} holds values beyond the largest {dtype}; store it with --normalise, or leave it out."
    )
