"""Cross attention that also gives its map, the mean over heads of its softmax weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gate.errors import ConfigurationError
from gate.extraction.kernels.choice import DTYPES, check_tensors, find_programs

# a text encoder's 77 tokens lie in one tile, so a row's softmax stays in registers; longer texts would need two passes
MOST_KEYS = 128


def attention_with_map(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + mask) v, and the mean over heads of that softmax.

    q: (b, heads, n, d). k, v: (b, heads, m, d) with m <= 128. All float32, float16 or bfloat16, any strides.
    scale: 1 / sqrt(d) unless given.
    mask: (b, m) or (b, heads, m); bool (False: not looked at), or numbers that are added to the logits.

    Returns the attention (b, heads, n, d) in q's dtype, lying in memory as (b, n, heads, d) so that the reshape which
    follows attention copies nothing, and the map (b, n, m) in float32. Everything but products is in float32. A query
    that may look at no key gets zeros in both. Gradients reach q, k and v, from both results.
    Raises ConfigurationError for other shapes, dtypes or devices.
    """
    check_tensors("attention with its map", q, k, v)
    b, heads, _, d = _shape(q, k, v)
    bias = None
    if mask is not None:
        bias = _bias(mask).to(q.device)
        bias = (bias[:, None] if bias.ndim == 2 else bias).expand(b, heads, k.shape[2])
    out, mean = _cross_map(q, k, v, d**-0.5 if scale is None else float(scale), bias)
    return out, mean


def head_mean_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """`attention_with_map` for the arguments of torch's scaled_dot_product_attention; None for what it cannot take.

    It cannot take causal attention, dropout, more than 128 keys, heads that share keys, a mask that differs between
    queries or wants a gradient, and other than four dimensions of one dtype in float32, float16 or bfloat16.
    """
    tensors = (query, key, value)
    if is_causal or dropout_p > 0 or any(t.ndim != 4 for t in tensors):
        return None
    if enable_gqa and query.shape[1] != key.shape[1]:
        return None
    alike = key.shape == value.shape and all(
        query.shape[i] == key.shape[i] and query.shape[i] > 0 for i in (1, 3)
    )
    if not alike or query.shape[0] != key.shape[0] or not 1 <= key.shape[2] <= MOST_KEYS:
        return None
    if query.dtype not in DTYPES or any(t.dtype != query.dtype or t.device != query.device for t in tensors):
        return None
    mask = None
    if attn_mask is not None:
        mask = _per_head(attn_mask, query.shape[0], query.shape[1], key.shape[2])
        if mask is None:
            return None
    return attention_with_map(query, key, value, scale=scale, mask=mask)


def _per_head(mask: Tensor, b: int, heads: int, m: int) -> Tensor | None:
    """A mask that broadcasts to (b, heads, n, m) as (b, heads, m); None where queries differ or it has a gradient."""
    if mask.requires_grad or mask.ndim > 4:
        return None
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.shape[2] > 1 and mask.stride(2) != 0:
        return None
    return mask[:, :, 0].expand(b, heads, m)


def _bias(mask: Tensor) -> Tensor:
    """A mask as numbers that are added to the logits, float32."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    return mask.float()


def _shape(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """(b, heads, n, d). Raises ConfigurationError unless q, k and v fit together."""
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2]
    if not fits or q.shape[3] != k.shape[3] or not all(q.shape[i] for i in (1, 3)):
        raise ConfigurationError(
            "Attention with its map takes q (b, heads, n, d) and k, v (b, heads, m, d), "
            f"not {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}."
        )
    if not 1 <= k.shape[2] <= MOST_KEYS:
        raise ConfigurationError(
            f"Attention with its map takes 1 to {MOST_KEYS} keys, not {k.shape[2]}; compute the map beside attention."
        )
    b, heads, n, d = q.shape
    return b, heads, n, d


def _weights(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Softmax weights (b, heads, n, m) in float32; zeros where a query may look at no key."""
    scores = q.float() @ k.float().transpose(2, 3) * scale
    if bias is None:
        return scores.softmax(-1)
    weights = (scores + bias[:, :, None]).softmax(-1)
    return weights.masked_fill((bias == float("-inf")).all(-1)[:, :, None, None], 0.0)


def _reference(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    weights = _weights(q, k, scale, bias)
    out = torch.empty_like(_empty(q))
    out.copy_(weights @ v.float())
    return out, weights.mean(1)


def _empty(q: Tensor) -> Tensor:
    """Room for the attention: (b, heads, n, d), in memory (b, n, heads, d)."""
    b, heads, n, d = q.shape
    return q.new_empty((b, n, heads, d)).transpose(1, 2)


_cross_map = torch.library.custom_op(
    "gate::cross_map",
    _reference,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, float scale, Tensor? bias) -> (Tensor, Tensor)",
)


@_cross_map.register_kernel("cuda")
def _on_cuda(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    programs = find_programs("cross_map")
    if programs is None:
        return _reference(q, k, v, scale, bias)
    out, mean = _empty(q), q.new_empty((q.shape[0], q.shape[2], k.shape[2]), dtype=torch.float32)
    programs.launch(q, k, v, scale, bias, out, mean)
    return out, mean


@_cross_map.register_fake
def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty((q.shape[0], q.shape[2], k.shape[2]), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, ctx.scale, bias = inputs
    ctx.save_for_backward(q, k, v, bias)


def _backward(ctx: Any, d_out: Tensor, d_mean: Tensor) -> tuple[Tensor | None, ...]:
    """The softmax is computed again, as (b, heads, n, m): keeping it would cost that memory between the two passes."""
    q, k, v, bias = ctx.saved_tensors
    p = _weights(q, k, ctx.scale, bias)
    d_out = d_out.float()
    d_p = d_out @ v.float().transpose(2, 3) + d_mean.float()[:, None] / q.shape[1]
    d_s = p * (d_p - (d_p * p).sum(-1, keepdim=True)) * ctx.scale
    grads = d_s @ k.float(), d_s.transpose(2, 3) @ q.float(), p.transpose(2, 3) @ d_out
    return *(g.to(t.dtype) for g, t in zip(grads, (q, k, v))), None, None


_cross_map.register_autograd(_backward, setup_context=_save)
