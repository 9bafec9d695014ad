"""Cross attention with its map: reference and Triton program against float64."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from kernel_modes import MODE, RUNS
from torch import Tensor

from gate.errors import ConfigurationError
from gate.extraction.kernels import cross_map
from gate.extraction.kernels.cross_map import attention_with_map, head_mean_attention

Draw = Callable[..., Tensor]
Close = Callable[[Tensor, Tensor], None]


def gold(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    s = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    p = (s if bias is None else s + bias.double()).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhnm,bhmd->bhnd", p, v.double()), p.mean(1)


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 37, 77, 40), (1, 4, 33, 77, 160), (2, 1, 5, 3, 7), (1, 2, 65, 128, 80), (1, 2, 1, 1, 1)],
    ids=str,
)
def test_odd_sizes(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    draw: Draw,
    close: Close,
    launched: Callable[[ModuleType], list[int]],
) -> None:
    b, h, n, m, d = shape
    q, k, v = (draw(b, h, rows, d).to(dtype) for rows in (n, m, m))
    calls = launched(cross_map)
    out, mean = attention_with_map(q, k, v)
    assert len(calls) == RUNS
    assert out.dtype == dtype and mean.dtype == torch.float32 and out.transpose(1, 2).is_contiguous()
    for got, expected in zip((out, mean), gold(q, k, v)):
        close(got, expected)


def test_strides(dtype: torch.dtype, draw: Draw, close: Close) -> None:
    q = draw(2, 37, 3, 80)[..., ::2].to(dtype).transpose(1, 2)  # heads within positions, every second channel
    k = (
        draw(1, 3, 40, 21).to(dtype).transpose(2, 3).expand(2, -1, -1, -1)
    )  # channels first, one for all images
    v = draw(2, 3, 42, 40).to(dtype)[:, :, ::2]
    out, mean = attention_with_map(q, k, v)
    for got, expected in zip((out, mean), gold(q, k, v)):
        close(got, expected)


def test_masks(dtype: torch.dtype, draw: Draw, close: Close) -> None:
    q, k, v = (draw(2, 3, rows, 16).to(dtype) for rows in (9, 20, 20))
    allowed = (draw(2, 20) > 0).to(q.device)
    allowed[:, 0] = True
    bias = torch.zeros(2, 20, device=q.device).masked_fill(~allowed, float("-inf"))
    per_head = draw(2, 3, 1, 20)
    for mask, added in ((allowed[:, None, None], bias[:, None, None]), (per_head, per_head)):
        made = head_mean_attention(q, k, v, attn_mask=mask)
        assert made is not None
        for got, expected in zip(made, gold(q, k, v, added)):
            close(got, expected)
    allowed[1] = False  # an image that may look nowhere
    out, mean = attention_with_map(q, k, v, mask=allowed)
    assert not out[1].any() and not mean[1].any() and mean[0].sum(-1).sub(1).abs().max() < 1e-6


def test_extreme_values(dtype: torch.dtype, draw: Draw, close: Close) -> None:
    """Logits of +-60,000, exact in every dtype, beside each other; an infinite value reaches its own channel alone."""
    q = torch.zeros(1, 2, 3, 4).to(draw(1).device)
    q[..., 0] = torch.tensor([256.0, -256.0, 0.0])
    k = torch.zeros(1, 2, 5, 4).to(q.device)
    k[..., 0] = torch.tensor([480.0, -480.0, 480.0, 0.0, 1.0])
    v = draw(1, 2, 5, 4).to(dtype)
    q, k = q.to(dtype), k.to(dtype)
    for got, expected in zip(attention_with_map(q, k, v), gold(q, k, v)):
        close(got, expected)
    v[0, 0, 0, 1] = float("inf")
    out, _ = attention_with_map(q, k, v)
    assert out[0, 0, 0, 1] == float("inf") and out[0, 0, :, [0, 2, 3]].isfinite().all()
    k[0, 0, 2] = float("nan")
    out, mean = attention_with_map(q, k, v)
    assert out[0, 0].isnan().all() and out[0, 1].isfinite().all() and mean.isnan().all()


def test_empty_batches(dtype: torch.dtype, draw: Draw) -> None:
    for b, n in ((0, 5), (2, 0)):
        q, k = draw(b, 3, n, 8).to(dtype), draw(b, 3, 7, 8).to(dtype)
        out, mean = attention_with_map(q, k, k)
        assert out.shape == (b, 3, n, 8) and mean.shape == (b, n, 7)


def test_same_bits_in_any_batch(dtype: torch.dtype, draw: Draw) -> None:
    q, k, v = (draw(3, 2, rows, 24).to(dtype) for rows in (70, 11, 11))
    out, mean = attention_with_map(q, k, v)
    for i in range(3):
        alone, map_alone = attention_with_map(q[i : i + 1], k[i : i + 1], v[i : i + 1])
        assert torch.equal(alone[0], out[i]) and torch.equal(map_alone[0], mean[i])


def test_the_op_keeps_its_word(draw: Draw) -> None:
    q, k, v = (draw(1, 2, rows, 8).requires_grad_() for rows in (5, 3, 3))
    torch.library.opcheck(cross_map._cross_map, (q, k, v, 0.5, None))


if MODE == "interpreter":

    def test_bfloat16_is_refused(draw: Draw) -> None:
        q = draw(1, 1, 4, 8).bfloat16()
        with pytest.raises(ConfigurationError, match="computes bfloat16 wrongly"):
            attention_with_map(q, q, q)
