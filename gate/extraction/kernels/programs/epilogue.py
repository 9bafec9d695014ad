"""The feature epilogue: a program owns a block of positions of an image and walks the channels.

A projection is finished in registers. Without one, a length needs all channels before the first is written, so they
are walked twice; the second time they come from the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from gate.extraction.kernels.programs.launching import power_of_two, precision, refuse_bfloat16

# a cell's members are walked one by one; where they are many, torch's own reduction is the better first pass
MOST_MEMBERS = 64
# channels of a projection that one program holds in registers; more are left to a matrix product
MOST_PROJECTED = 256


@triton.jit
def _tap(i, offset, size, cells, BILINEAR: tl.constexpr):
    """Index of the offset-th source of target i, and its weight. In integers, so that no rounding moves an index."""
    if BILINEAR:
        at = tl.maximum((2 * i + 1) * size - cells, 0)  # in units of 1 / (2 cells)
        first = at // (2 * cells)
        beyond = (at - first * 2 * cells).to(tl.float32) / (2.0 * cells)
        index = tl.minimum(first + offset, size - 1)
        weight = tl.where(offset == 0, 1.0 - beyond, beyond)
    else:
        start = i * size // cells
        stop = ((i + 1) * size + cells - 1) // cells
        index = start + offset
        weight = tl.where(index < stop, 1.0 / (stop - start).to(tl.float32), 0.0)
    return index, weight


@triton.jit
def _resampled(
    x, rows, here, channel, channels, h, w, out_h, out_w, x_c, x_y, x_x,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, BILINEAR: tl.constexpr,
):  # fmt: skip
    value = tl.zeros((ROWS, WIDTH), tl.float32)
    for dy in range(TAPS_Y):
        y, y_weight = _tap(rows // out_w, dy, h, out_h, BILINEAR)
        for dx in range(TAPS_X):
            col, x_weight = _tap(rows % out_w, dx, w, out_w, BILINEAR)
            weight = y_weight * x_weight
            tile = tl.load(
                x + (y * x_y + col * x_x)[:, None] + channel[None, :] * x_c,
                mask=(here & (weight > 0.0))[:, None] & (channel < channels)[None, :],
                other=0.0,
            )
            value += weight[:, None] * tile.to(tl.float32)
    return value


@triton.jit
def _length(square):
    """No less than 1e-12. Not `maximum`, which takes 1e-12 for NaN and so hides it in the other channels."""
    length = tl.sqrt(square)
    return tl.where(length < 1e-12, 1e-12, length)


@triton.jit
def _finish(
    x, matrix, mean, out, channels, d, h, w, out_h, out_w, blocks, x_b, x_c, x_y, x_x, out_b, out_c, out_n,
    PROJECT: tl.constexpr, CENTRE: tl.constexpr, NORMALISE: tl.constexpr, BILINEAR: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, COLS: tl.constexpr,
    TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    here = rows < out_h * out_w
    x += image * x_b
    out += image * out_b
    if PROJECT:
        cols = tl.arange(0, COLS)
        acc = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, channels, WIDTH):
            channel = start + tl.arange(0, WIDTH)
            value = _resampled(
                x, rows, here, channel, channels, h, w, out_h, out_w, x_c, x_y, x_x,
                ROWS, WIDTH, TAPS_Y, TAPS_X, BILINEAR,
            )  # fmt: skip
            if CENTRE:
                value -= tl.load(mean + channel, mask=channel < channels, other=0.0)[None, :]
            part = tl.load(
                matrix + cols[None, :] * channels + channel[:, None],
                mask=(channel < channels)[:, None] & (cols < d)[None, :],
                other=0.0,
            )
            acc = tl.dot(value, part, acc, input_precision=PRECISION)
        if NORMALISE:
            acc /= _length(tl.sum(acc * acc, 1))[:, None]
        tl.store(
            out + rows[:, None] * out_n + cols[None, :] * out_c,
            acc.to(out.dtype.element_ty),
            mask=here[:, None] & (cols < d)[None, :],
        )
    else:
        length = tl.full((ROWS,), 1.0, tl.float32)
        if NORMALISE:
            square = tl.zeros((ROWS,), tl.float32)
            for start in range(0, channels, WIDTH):
                channel = start + tl.arange(0, WIDTH)
                value = _resampled(
                    x, rows, here, channel, channels, h, w, out_h, out_w, x_c, x_y, x_x,
                    ROWS, WIDTH, TAPS_Y, TAPS_X, BILINEAR,
                )  # fmt: skip
                square += tl.sum(value * value, 1)
            length = _length(square)
        for start in range(0, channels, WIDTH):
            channel = start + tl.arange(0, WIDTH)
            value = _resampled(
                x, rows, here, channel, channels, h, w, out_h, out_w, x_c, x_y, x_x,
                ROWS, WIDTH, TAPS_Y, TAPS_X, BILINEAR,
            )  # fmt: skip
            tl.store(
                out + rows[:, None] * out_n + channel[None, :] * out_c,
                (value / length[:, None]).to(out.dtype.element_ty),
                mask=here[:, None] & (channel < channels)[None, :],
            )


def launch(
    x: Tensor,
    matrix: Tensor | None,
    mean: Tensor | None,
    side: tuple[int, int],
    bilinear: bool,
    normalise: bool,
    out: Tensor,
) -> None:
    """Fill out, (b, d, *side) or tokens (b, n, d), contiguous. Shapes were checked before."""
    refuse_bfloat16(_finish, [x.dtype, out.dtype])
    if x.shape[0] == 0:
        return
    bilinear = bilinear and x.shape[2:] != side
    if not bilinear and _members(x.shape[2], side[0]) * _members(x.shape[3], side[1]) > MOST_MEMBERS:
        x = adaptive_avg_pool2d(x.float(), side)
    if matrix is not None and matrix.shape[0] > MOST_PROJECTED:
        x, matrix, mean, bilinear = _projected(x, matrix, mean, bilinear, side), None, None, False
    _run(x, matrix, mean, bilinear, normalise, side, out)


def _members(size: int, cells: int) -> int:
    """The most sources that a cell averages along a side."""
    return max(-(-(i + 1) * size // cells) - i * size // cells for i in range(cells))


def _projected(
    x: Tensor, matrix: Tensor, mean: Tensor | None, bilinear: bool, side: tuple[int, int]
) -> Tensor:
    """The wide projection as a matrix product, (b, d, h, w) in float32, lying as (b, h, w, d)."""
    tokens = x.new_empty((x.shape[0], side[0] * side[1], x.shape[1]), dtype=torch.float32)
    _run(x, None, None, bilinear, False, side, tokens)
    y = (tokens if mean is None else tokens.sub_(mean)) @ matrix.T
    return y.unflatten(1, side).permute(0, 3, 1, 2)


def _run(
    x: Tensor,
    matrix: Tensor | None,
    mean: Tensor | None,
    bilinear: bool,
    normalise: bool,
    side: tuple[int, int],
    out: Tensor,
) -> None:
    b, c, h, w = x.shape
    d = 0 if matrix is None else matrix.shape[0]
    # narrower with a projection: its accumulator needs the registers
    width, warps = (64, 4) if matrix is None else (32, 8)
    taps = (2, 2) if bilinear else (_members(h, side[0]), _members(w, side[1]))
    rows = min(32, power_of_two(side[0] * side[1]))
    blocks = triton.cdiv(side[0] * side[1], rows)
    out_strides = (out.stride(0), out.stride(1), 1) if out.ndim == 4 else (out.stride(0), 1, out.stride(1))
    _finish[(b * blocks,)](
        x, None if matrix is None else matrix.contiguous(), None if mean is None else mean.contiguous(), out,
        c, d, h, w, *side, blocks, *x.stride(), *out_strides,
        PROJECT=matrix is not None, CENTRE=mean is not None, NORMALISE=normalise, BILINEAR=bilinear,
        ROWS=rows, WIDTH=min(width, power_of_two(c)), COLS=power_of_two(max(1, d)),
        TAPS_Y=taps[0], TAPS_X=taps[1], PRECISION=precision(x.dtype), num_warps=warps, num_stages=1,
    )  # fmt: skip
