"""Pooled self-attention maps in two passes: each query's largest logit and sum, then the weights, added up by cell.

In the second pass a program owns a tile of cells by cells of keys. It walks the members of a cell by their offset
from its corner, so that one member of every cell of the tile is a plain tile of logits, and adds these up in
registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gate.extraction.kernels.programs.launching import attention_tiles, power_of_two, refuse_bfloat16


@triton.jit
def _logits(
    q, k, rows, cols, here, valid, d, scale, q_n, q_d, k_n, k_d,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    s = tl.zeros((ROWS, COLS), tl.float32)
    for chunk in range(CHUNKS):
        lane = chunk * WIDTH + tl.arange(0, WIDTH)
        inside = lane < d
        q_tile = tl.load(
            q + rows[:, None] * q_n + lane[None, :] * q_d, mask=here[:, None] & inside[None, :], other=0.0
        )
        k_tile = tl.load(
            k + lane[:, None] * k_d + cols[None, :] * k_n, mask=inside[:, None] & valid[None, :], other=0.0
        )
        s = tl.dot(q_tile, k_tile, s, input_precision=PRECISION)
    return s * scale


@triton.jit
def _sums(
    q, k, top, norm, heads, n, d, blocks, scale,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pair = (tl.program_id(0) // blocks).to(tl.int64)  # of image and head
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    here = rows < n
    q += (pair // heads) * q_b + (pair % heads) * q_h
    k += (pair // heads) * k_b + (pair % heads) * k_h
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, n, COLS):
        cols = start + tl.arange(0, COLS)
        valid = cols < n
        s = _logits(
            q, k, rows, cols, here, valid, d, scale, q_n, q_d, k_n, k_d, ROWS, COLS, WIDTH, CHUNKS, PRECISION
        )
        s = tl.where(valid[None, :], s, float("-inf"))
        new = tl.maximum(largest, tl.max(s, 1))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(s - new[:, None]), 1)
        largest = new
    tl.store(top + pair * n + rows, largest, mask=here)
    tl.store(norm + pair * n + rows, total, mask=here)


@triton.jit
def _member(cell, offset, height, width, across, POOL: tl.constexpr):
    """Position of the offset-th member of a cell, and whether the grid has it. across: cells in a row of the grid."""
    y = (cell // across) * POOL + offset // POOL
    x = (cell % across) * POOL + offset % POOL
    return y * width + x, (y < height) & (x < width)


@triton.jit
def _cells(
    q, k, top, norm, out, heads, height, width, d, cells, key_cells, row_tiles, col_tiles, scale,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d,
    MEAN: tl.constexpr, POOL: tl.constexpr, POOL_KEYS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % (row_tiles * col_tiles)
    owner = (tl.program_id(0) // (row_tiles * col_tiles)).to(tl.int64)  # an image, or an image's head
    rows = (tile // col_tiles) * ROWS + tl.arange(0, ROWS)
    cols = (tile % col_tiles) * COLS + tl.arange(0, COLS)
    n = height * width
    across, key_across = tl.cdiv(width, POOL), tl.cdiv(width, POOL_KEYS)
    first = owner * heads if MEAN else owner
    q += (first // heads) * q_b + (first % heads) * q_h
    k += (first // heads) * k_b + (first % heads) * k_h
    top += first * n
    norm += first * n
    acc = tl.zeros((ROWS, COLS), tl.float32)
    members = tl.zeros((ROWS,), tl.float32)
    for _ in range(heads if MEAN else 1):
        for i in range(POOL * POOL):
            query, here = _member(rows, i, height, width, across, POOL)
            here = here & (rows < cells)
            largest = tl.load(top + query, mask=here, other=0.0)
            share = 1.0 / tl.load(norm + query, mask=here, other=1.0)
            members += tl.where(here, 1.0, 0.0)
            for j in range(POOL_KEYS * POOL_KEYS):
                key, valid = _member(cols, j, height, width, key_across, POOL_KEYS)
                valid = valid & (cols < key_cells)
                s = _logits(
                    q,
                    k,
                    query,
                    key,
                    here,
                    valid,
                    d,
                    scale,
                    q_n,
                    q_d,
                    k_n,
                    k_d,
                    ROWS,
                    COLS,
                    WIDTH,
                    CHUNKS,
                    PRECISION,
                )
                weights = tl.exp(s - largest[:, None]) * share[:, None]
                acc += tl.where(here[:, None] & valid[None, :], weights, 0.0)
        q += q_h
        k += k_h
        top += n
        norm += n
    out += owner * cells * key_cells
    tl.store(
        out + rows[:, None] * key_cells + cols[None, :],
        acc / tl.maximum(members, 1.0)[:, None],
        mask=(rows < cells)[:, None] & (cols < key_cells)[None, :],
    )


def launch(
    q: Tensor, k: Tensor, grid: tuple[int, int], pool: int, pool_keys: int, scale: float, out: Tensor
) -> None:
    """Fill out (b, heads or 1, cells, cells of keys), float32 and contiguous. Shapes were checked before."""
    refuse_bfloat16(_cells, [q.dtype])
    b, heads, n, d = q.shape
    if b == 0:
        return
    top, norm = (q.new_empty((b, heads, n), dtype=torch.float32) for _ in range(2))
    strides = (*q.stride(), *k.stride())
    tiles = attention_tiles(d, q.dtype)
    most = tiles.pop("ROWS")
    rows, cols = min(most, power_of_two(n)), min(64, power_of_two(n))
    blocks = triton.cdiv(n, rows)
    _sums[(b * heads * blocks,)](
        q, k, top, norm, heads, n, d, blocks, scale, *strides, ROWS=rows, COLS=cols, **tiles, num_warps=4
    )
    cells, key_cells = out.shape[2:]
    rows, cols = min(most, power_of_two(cells)), min(64, power_of_two(key_cells))
    row_tiles, col_tiles = triton.cdiv(cells, rows), triton.cdiv(key_cells, cols)
    _cells[(b * out.shape[1] * row_tiles * col_tiles,)](
        q, k, top, norm, out, heads, *grid, d, cells, key_cells, row_tiles, col_tiles, scale, *strides,
        MEAN=out.shape[1] == 1, POOL=pool, POOL_KEYS=pool_keys, ROWS=rows, COLS=cols, **tiles, num_warps=4,
    )  # fmt: skip
