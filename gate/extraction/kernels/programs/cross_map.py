"""Cross attention with its head-mean map: a program owns a block of queries and walks the heads.

The map stays in registers until the last head. No two programs write to one place and none adds atomically, so the same
input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gate.extraction.kernels.programs.launching import attention_tiles, power_of_two, refuse_bfloat16


@triton.jit
def _attend(
    q, k, v, bias, out, mean,
    heads, n, m, d, blocks, scale,
    q_b, q_h, q_n, q_d, k_b, k_h, k_m, k_d, v_b, v_h, v_m, v_d, bias_b, bias_h, bias_m, out_b, out_h, out_n, out_d,
    BIAS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, KEYS)
    here, valid = (rows < n)[:, None], cols < m
    q += batch * q_b
    k += batch * k_b
    v += batch * v_b
    out += batch * out_b
    if BIAS:
        bias += batch * bias_b
    total = tl.zeros((ROWS, KEYS), tl.float32)
    for _ in range(heads):
        s = tl.zeros((ROWS, KEYS), tl.float32)
        for chunk in range(CHUNKS):
            lane = chunk * WIDTH + tl.arange(0, WIDTH)
            inside = lane < d
            q_tile = tl.load(
                q + rows[:, None] * q_n + lane[None, :] * q_d, mask=here & inside[None, :], other=0.0
            )
            k_tile = tl.load(
                k + lane[:, None] * k_d + cols[None, :] * k_m,
                mask=inside[:, None] & valid[None, :],
                other=0.0,
            )
            s = tl.dot(q_tile, k_tile, s, input_precision=PRECISION)  # (ROWS, KEYS)
        s *= scale
        if BIAS:
            s += tl.load(bias + cols * bias_m, mask=valid, other=0.0)[None, :]
            bias += bias_h
        s = tl.where(valid[None, :], s, float("-inf"))
        top = tl.max(s, 1)
        top = tl.where(top == float("-inf"), 0.0, top)  # no key at all: exp(-inf), not exp(-inf + inf)
        p = tl.exp(s - top[:, None])
        norm = tl.sum(p, 1)
        p /= tl.where(norm == 0.0, 1.0, norm)[:, None]
        total += p
        for chunk in range(CHUNKS):
            lane = chunk * WIDTH + tl.arange(0, WIDTH)
            inside = lane < d
            v_tile = tl.load(
                v + cols[:, None] * v_m + lane[None, :] * v_d,
                mask=valid[:, None] & inside[None, :],
                other=0.0,
            )
            o = tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)
            tl.store(
                out + rows[:, None] * out_n + lane[None, :] * out_d,
                o.to(out.dtype.element_ty),
                mask=here & inside[None, :],
            )
        q += q_h
        k += k_h
        v += v_h
        out += out_h
    mean += batch * n * m
    tl.store(mean + rows[:, None] * m + cols[None, :], total / heads, mask=here & valid[None, :])


def launch(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, out: Tensor, mean: Tensor
) -> None:
    """Fill out (b, heads, n, d), any strides, and mean (b, n, m), float32, contiguous. Shapes were checked before."""
    refuse_bfloat16(_attend, [q.dtype])
    b, heads, n, d = q.shape
    m = k.shape[2]
    if b == 0 or n == 0:
        return
    tiles = attention_tiles(d, q.dtype)
    blocks = triton.cdiv(n, tiles["ROWS"])
    _attend[(b * blocks,)](
        q, k, v, bias, out, mean,
        heads, n, m, d, blocks, scale,
        *q.stride(), *k.stride(), *v.stride(), *((0, 0, 0) if bias is None else bias.stride()), *out.stride(),
        BIAS=bias is not None, KEYS=power_of_two(m), **tiles, num_warps=8 if q.element_size() == 4 else 4,
    )  # fmt: skip
