"""From an activation to a stored feature in one pass: resample, project, normalise, cast and lay out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from gate.errors import ConfigurationError
from gate.extraction.kernels.choice import DTYPES, check_tensors, find_programs


def feature_epilogue(
    x: Tensor,
    *,
    cells: int = 0,
    bilinear: bool = False,
    matrix: Tensor | None = None,
    mean: Tensor | None = None,
    normalise: bool = False,
    dtype: torch.dtype = torch.float32,
    tokens: bool = False,
) -> Tensor:
    """matrix (x - mean) of the resampled x, of length 1, in `dtype`; what is not asked for is left out.

    x: (b, c, h, w), float32, float16 or bfloat16, any strides.
    cells: side of the grid afterwards, 0 for x's own. Cells are averages over their area (torch's
    adaptive_avg_pool2d, and so its interpolate(mode="area")); with bilinear, torch's interpolate(mode="bilinear",
    align_corners=False, antialias=False). cells=1 is the mean over all positions.
    matrix: (d, c), mean: (c,), float32, on x's device. normalise: length 1 over channels, at each position; zeros
    stay zeros.

    Returns (b, d, h, w), or with tokens (b, h w, d), contiguous. All arithmetic is float32; on a GPU, the projection
    of a half rounds its factors to 11 bits, as many as float16 has. It has no gradient. Raises ConfigurationError for
    other shapes, dtypes or devices.
    """
    check_tensors("a feature's epilogue", x)
    if x.ndim != 4 or not x.shape[1] * x.shape[2] * x.shape[3] or cells < 0:
        raise ConfigurationError(
            f"A feature's epilogue takes (b, c, h, w) and a grid, not {tuple(x.shape)} and {cells}."
        )
    if dtype not in DTYPES:
        raise ConfigurationError(f"A feature is stored in float32, float16 or bfloat16, not {dtype}.")
    _check_projection(x, matrix, mean)
    return _epilogue(x, matrix, mean, cells, bilinear, normalise, dtype, tokens)


def _check_projection(x: Tensor, matrix: Tensor | None, mean: Tensor | None) -> None:
    """Raises ConfigurationError unless matrix and mean fit x."""
    if mean is not None and matrix is None:
        raise ConfigurationError("A mean is subtracted before a projection only; give its matrix too.")
    for part, shape in ((matrix, "(d, c)"), (mean, "(c,)")):
        fits = part is None or (
            part.ndim == (2 if part is matrix else 1)
            and part.shape[-1] == x.shape[1]
            and part.dtype == torch.float32
            and part.device == x.device
        )
        if not fits:
            assert part is not None
            raise ConfigurationError(
                f"A projection of {x.shape[1]} channels takes {shape} in float32 on {x.device}, "
                f"not {tuple(part.shape)} in {part.dtype} on {part.device}."
            )


def _room(x: Tensor, matrix: Tensor | None, cells: int, dtype: torch.dtype, tokens: bool) -> Tensor:
    """Room for the result."""
    h, w = (cells, cells) if cells else x.shape[2:]
    d = x.shape[1] if matrix is None else matrix.shape[0]
    return x.new_empty((x.shape[0], h * w, d) if tokens else (x.shape[0], d, h, w), dtype=dtype)


def _reference(
    x: Tensor,
    matrix: Tensor | None,
    mean: Tensor | None,
    cells: int,
    bilinear: bool,
    normalise: bool,
    dtype: torch.dtype,
    tokens: bool,
) -> Tensor:
    """An image after the other, each copied to memory of its own: neither the batch size nor strides change a bit."""
    out = _room(x, matrix, cells, dtype, tokens)
    if not (cells or normalise or matrix is not None):
        return out.copy_(x.flatten(2).transpose(1, 2) if tokens else x)
    for i in range(x.shape[0]):
        y = x[i : i + 1].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if cells and bilinear:
            y = interpolate(y, (cells, cells), mode="bilinear", align_corners=False)
        elif cells:
            y = adaptive_avg_pool2d(y, cells)
        flat = y[0].flatten(1)  # (c, positions)
        if matrix is not None:
            flat = matrix @ (flat if mean is None else flat - mean[:, None])
        if normalise:
            flat = normalize(flat, dim=0)
        out[i] = flat.T if tokens else flat.view_as(out[i])
    return out


_epilogue = torch.library.custom_op(
    "gate::epilogue",
    _reference,
    mutates_args=(),
    schema="(Tensor x, Tensor? matrix, Tensor? mean, int cells, bool bilinear, bool normalise, "
    "ScalarType dtype, bool tokens) -> Tensor",
)


@_epilogue.register_kernel("cuda")
def _on_cuda(
    x: Tensor,
    matrix: Tensor | None,
    mean: Tensor | None,
    cells: int,
    bilinear: bool,
    normalise: bool,
    dtype: torch.dtype,
    tokens: bool,
) -> Tensor:
    programs = find_programs("epilogue")
    if programs is None:
        return _reference(x, matrix, mean, cells, bilinear, normalise, dtype, tokens)
    out = _room(x, matrix, cells, dtype, tokens)
    side = (cells, cells) if cells else (x.shape[2], x.shape[3])
    programs.launch(x, matrix, mean, side, bilinear, normalise, out)
    return out


@_epilogue.register_fake
def _fake(
    x: Tensor,
    matrix: Tensor | None,
    mean: Tensor | None,
    cells: int,
    bilinear: bool,
    normalise: bool,
    dtype: torch.dtype,
    tokens: bool,
) -> Tensor:
    return _room(x, matrix, cells, dtype, tokens)
