"""Pooled self-maps: reference and Triton programs against the whole map in float64."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from kernel_modes import MODE, RUNS
from torch import Tensor

from gate.errors import ConfigurationError
from gate.extraction.kernels import self_map
from gate.extraction.kernels.self_map import pooled_self_map

Draw = Callable[..., Tensor]
Close = Callable[[Tensor, Tensor], None]


def cells(grid: tuple[int, int], pool: int) -> Tensor:
    """(n, cells), 1 where a position belongs to a cell."""
    y, x = (torch.arange(size) // pool for size in grid)
    number = (y[:, None] * -(-grid[1] // pool) + x[None]).flatten()
    return torch.nn.functional.one_hot(number).double()


def gold(q: Tensor, k: Tensor, grid: tuple[int, int], pool: int, pool_keys: int) -> Tensor:
    s = torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) / q.shape[-1] ** 0.5
    of_query, of_key = cells(grid, pool).to(q.device), cells(grid, pool_keys).to(q.device)
    return (of_query / of_query.sum(0)).T @ s.softmax(-1) @ of_key


@pytest.mark.parametrize(
    ("shape", "grid", "pool", "pool_keys"),
    [
        ((2, 1, 15, 7), (3, 5), 2, 2),
        ((1, 2, 35, 40), (5, 7), 1, 2),
        ((1, 1, 70, 16), (7, 10), 1, 1),
        ((1, 1, 6, 160), (1, 6), 1, 3),
        ((2, 1, 1, 1), (1, 1), 1, 1),
    ],
    ids=str,
)
def test_odd_sizes(
    shape: tuple[int, ...],
    grid: tuple[int, int],
    pool: int,
    pool_keys: int,
    dtype: torch.dtype,
    draw: Draw,
    close: Close,
    launched: Callable[[ModuleType], list[int]],
) -> None:
    q, k = draw(*shape).to(dtype), draw(*shape).to(dtype)
    expected = gold(q, k, grid, pool, pool_keys)
    calls = launched(self_map)
    each = pooled_self_map(q, k, grid=grid, pool=pool, pool_keys=pool_keys, head_mean=False)
    mean = pooled_self_map(q, k, grid=grid, pool=pool, pool_keys=pool_keys)
    assert len(calls) == 2 * RUNS and each.dtype == torch.float32
    close(each, expected)
    close(mean, expected.mean(1, keepdim=True))


def test_strides(dtype: torch.dtype, draw: Draw, close: Close) -> None:
    q = draw(2, 15, 2, 24)[..., ::2].to(dtype).transpose(1, 2)
    k = draw(1, 2, 12, 15).to(dtype).transpose(2, 3).expand(2, -1, -1, -1)
    close(pooled_self_map(q, k, grid=(5, 3), pool=2, pool_keys=1, head_mean=False), gold(q, k, (5, 3), 2, 1))


def test_extreme_values(dtype: torch.dtype, draw: Draw, close: Close) -> None:
    """Logits of +-61,440 and small ones beside them, exact in every dtype."""
    q = torch.zeros(1, 2, 6, 4).to(draw(1).device)
    k = torch.zeros_like(q)
    q[..., 0] = torch.tensor([256.0, -256.0, 0.0, 1.0, 256.0, 2.0])
    k[..., 0] = torch.tensor([480.0, -480.0, 480.0, 0.0, 1.0, 2.0])
    q, k = q.to(dtype), k.to(dtype)
    close(pooled_self_map(q, k, grid=(2, 3), head_mean=False), gold(q, k, (2, 3), 1, 1))
    k[0, 0, 2] = float("nan")
    made = pooled_self_map(q, k, grid=(2, 3), head_mean=False)
    assert made[0, 0].isnan().all() and made[0, 1].isfinite().all()


def test_empty_batches(dtype: torch.dtype, draw: Draw) -> None:
    q = draw(0, 3, 6, 8).to(dtype)
    assert pooled_self_map(q, q, grid=(2, 3), pool=2).shape == (0, 1, 2, 2)


def test_the_op_keeps_its_word(draw: Draw) -> None:
    q = draw(1, 2, 6, 8)
    torch.library.opcheck(self_map._self_map, (q, q * 2, 2, 3, 2, 1, 0.5, True))


if MODE == "interpreter":

    def test_bfloat16_is_refused(draw: Draw) -> None:
        q = draw(1, 1, 4, 8).bfloat16()
        with pytest.raises(ConfigurationError, match="computes bfloat16 wrongly"):
            pooled_self_map(q, q, grid=(2, 2))
