"""Self-attention maps, pooled over the grid, without the map itself ever being there.

A 64x64 grid has 16.8 million softmax weights a head; pooled 4x4 on both sides there are 65,536. So the softmax is
made twice: first only each query's largest logit and its sum of exponentials, then the weights again, summed into
their cells.
Memory beside q, k and the result: 8 b heads n bytes on CUDA (the two float32 numbers of a query; kept apart, not as one
log-sum-exp, because a large logit would leave no bits for the logarithm), against 4 b heads n^2 of the map. On the
CPU, the weights of a few rows of cells of one image: 4 heads n bytes for each query of these rows, 64 MiB in all or one
row of cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gate.errors import ConfigurationError
from gate.extraction.kernels.choice import check_tensors, find_programs

SLAB = 1 << 24  # weights that the reference holds at a time: 64 MiB


def pooled_self_map(
    q: Tensor,
    k: Tensor,
    *,
    grid: tuple[int, int],
    pool: int = 1,
    pool_keys: int | None = None,
    scale: float | None = None,
    head_mean: bool = True,
) -> Tensor:
    """Softmax weights of self-attention, averaged over queries in pool x pool cells and summed over keys in theirs.

    q, k: (b, heads, n, d), float32, float16 or bfloat16, any strides; n = grid[0] * grid[1], row by row.
    pool, pool_keys: side of a cell, in positions; keys take that of queries unless given. Where a side of the grid is
    no multiple, the last cells are smaller. scale: 1 / sqrt(d) unless given.

    Returns (b, heads, cells, cells of keys) in float32, (b, 1, ...) for the mean over heads. Every row sums to 1. It
    has no gradient: asking for one raises. Raises ConfigurationError for other shapes, dtypes or devices.
    """
    check_tensors("a pooled self-map", q, k)
    height, width = grid
    if (
        q.ndim != 4
        or q.shape != k.shape
        or q.shape[2] != height * width
        or not q.shape[1] * q.shape[2] * q.shape[3]
    ):
        raise ConfigurationError(
            f"A pooled self-map takes q and k (b, heads, n, d) with n = {height} * {width}, the grid, "
            f"not {tuple(q.shape)} and {tuple(k.shape)}."
        )
    pool_keys = pool if pool_keys is None else pool_keys
    if pool < 1 or pool_keys < 1:
        raise ConfigurationError(f"A cell's side is 1 position or more, not {min(pool, pool_keys)}.")
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    return _self_map(q, k, height, width, pool, pool_keys, scale, head_mean)


def _room(q: Tensor, height: int, width: int, pool: int, pool_keys: int, head_mean: bool) -> Tensor:
    """Room for the result."""
    rows, cols = ((-(-height // p)) * (-(-width // p)) for p in (pool, pool_keys))
    return q.new_empty((q.shape[0], 1 if head_mean else q.shape[1], rows, cols), dtype=torch.float32)


def _reference(
    q: Tensor, k: Tensor, height: int, width: int, pool: int, pool_keys: int, scale: float, head_mean: bool
) -> Tensor:
    """An image after the other, some rows of cells at a time: the batch size changes no bit."""
    out = _room(q, height, width, pool, pool_keys, head_mean)
    heads, n = q.shape[1], q.shape[2]
    step = pool * max(1, SLAB // (heads * pool * width * n))  # rows of the grid
    for i in range(q.shape[0]):
        keys = k[i].float().transpose(1, 2).contiguous()
        queries = q[i].float().unflatten(1, (height, width))  # type: ignore[no-untyped-call]
        slabs = [
            _pooled(
                part.flatten(1, 2) @ keys * scale, (part.shape[1], width), (height, width), pool, pool_keys
            )
            for part in queries.split(step, 1)
        ]
        weights = torch.cat(slabs, 1)  # (heads, cells, cells of keys)
        out[i] = weights.mean(0, keepdim=True) if head_mean else weights
    return out


def _pooled(
    logits: Tensor, rows: tuple[int, int], grid: tuple[int, int], pool: int, pool_keys: int
) -> Tensor:
    """(heads, queries of some rows, n) -> (heads, cells, cells of keys)."""
    heads = logits.shape[0]
    weights = logits.softmax(-1).reshape(-1, 1, *grid)
    summed = avg_pool2d(weights, pool_keys, ceil_mode=True, divisor_override=1)  # (heads queries, 1, h', w')
    by_key = summed.reshape(heads, *rows, -1).permute(0, 3, 1, 2)
    means = avg_pool2d(by_key, pool, ceil_mode=True, count_include_pad=False)
    return means.flatten(2).transpose(1, 2)


_self_map = torch.library.custom_op(
    "gate::self_map",
    _reference,
    mutates_args=(),
    schema="(Tensor q, Tensor k, int height, int width, int pool, int pool_keys, float scale, "
    "bool head_mean) -> Tensor",
)


@_self_map.register_kernel("cuda")
def _on_cuda(
    q: Tensor, k: Tensor, height: int, width: int, pool: int, pool_keys: int, scale: float, head_mean: bool
) -> Tensor:
    programs = find_programs("self_map")
    if programs is None:
        return _reference(q, k, height, width, pool, pool_keys, scale, head_mean)
    out = _room(q, height, width, pool, pool_keys, head_mean)
    programs.launch(q, k, (height, width), pool, pool_keys, scale, out)
    return out


@_self_map.register_fake
def _fake(
    q: Tensor, k: Tensor, height: int, width: int, pool: int, pool_keys: int, scale: float, head_mean: bool
) -> Tensor:
    return _room(q, height, width, pool, pool_keys, head_mean)
