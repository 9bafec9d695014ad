"""Softmax weights of an attention, computed beside it, and their shapes: per head, as a feature map, averaged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from gate.errors import ConfigurationError


class Attention(TorchFunctionMode):
    """Looks at the first scaled dot-product attention that is computed while it is on: an IP-Adapter adds others."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and self.seen is None:
            self.seen = args, dict(kwargs or {})
        return func(*args, **(kwargs or {}))

    def weights(self, where: str) -> Tensor:
        """softmax(q k^T / sqrt(d) + mask), (b, heads, queries, keys) in q's dtype."""
        if self.seen is None:
            raise ConfigurationError(
                f"{where} computes no softmax attention that can be seen: it is linear, or runs on another attention "
                "backend than torch's; set the denoiser's attention backend to native, or leave its maps out."
            )
        return softmax_weights(*self.seen[0], **self.seen[1])


def softmax_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights that torch's scaled_dot_product_attention gives its values: (b, heads, queries, keys), rows sum to 1.

    Arguments as there; the softmax is taken in float32.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        allowed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if allowed else scores + attn_mask
    return scores.float().softmax(-1).to(query.dtype)


def mean_map(maps: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """The paper's attention features (section 3): mean over heads and layers, at the finest layer's grid.

    maps: (b, heads, positions, tokens) each. Returns (b, tokens, h, w); coarser layers are interpolated bilinearly.
    """
    means = [spatial(m.mean(1, keepdim=True), grid) for m in maps]
    size = max((m.shape[-2:] for m in means), key=math.prod)
    return torch.stack(
        [
            m if m.shape[-2:] == size else interpolate(m, size, mode="bilinear", align_corners=False)
            for m in means
        ]
    ).mean(0)


def spatial(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Softmax weights as a feature map, a channel for every head and key: (b, k, n, m) -> (b, k m, h, w)."""
    b, k, n, m = weights.shape
    size = level_of(n, grid)
    if size is None:
        raise ConfigurationError(
            f"A map of {n} positions lies on no level of a latent of {grid[0]} x {grid[1]}; leave its layer out."
        )
    return weights.transpose(2, 3).reshape(b, k * m, *size)


def per_head(feature: Tensor, heads: int) -> Tensor:
    """The inverse of `spatial`: (b, k m, h, w) -> (b, k, n, m). heads: k."""
    return feature.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)  # type: ignore[no-untyped-call]


def as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (b, n, d) -> (b, d, h, w) on a coarser level of `grid`; what lies on none of its levels stays as it is."""
    size = level_of(x.shape[1], grid) if x.ndim == 3 else None
    if size is None:
        return x
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)


def level_of(n: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) of n positions, h w = n: a grid's halves, rounded up as strided convolutions do, or its very aspect ratio.

    None: n is of no level of the grid.
    """
    h, w = grid
    while h * w > n and max(h, w) > 1:
        h, w = -(-h // 2), -(-w // 2)
    if h * w == n:
        return h, w
    h = math.isqrt(n * grid[0] // grid[1])
    return (h, n // h) if h and h * h * grid[1] == n * grid[0] and n % h == 0 else None
