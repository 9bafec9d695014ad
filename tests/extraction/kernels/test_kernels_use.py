"""Kernels in use: in place of torch's attention, compiled, differentiated, and where triton is missing."""

from __future__ import annotations

import shutil
import sys
import warnings
from typing import Any

import pytest
import torch
from kernel_modes import MODE
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gate.backbones.maps import softmax_weights
from gate.errors import ConfigurationError
from gate.extraction.kernels import cross_map
from gate.extraction.kernels.choice import find_programs
from gate.extraction.kernels.cross_map import attention_with_map, head_mean_attention
from gate.extraction.kernels.epilogue import feature_epilogue
from gate.extraction.kernels.self_map import pooled_self_map

pytestmark = pytest.mark.skipif(
    MODE != "reference", reason="about the references and what surrounds the programs"
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention() -> tuple[Tensor, Tensor, Tensor]:
    return draw(2, 3, 12, 8), draw(2, 3, 5, 8, seed=1), draw(2, 3, 5, 8, seed=2)


def test_takes_what_torch_attention_takes() -> None:
    q, k, v = attention()
    allowed = torch.rand(2, 1, 1, 5, generator=torch.Generator().manual_seed(3)) > 0.4
    allowed[..., 0] = True
    masks = (None, allowed, draw(1, 5), draw(2, 3, 1, 5), draw(1, 5).expand(12, 5))
    for mask in masks:
        for scale in (None, 0.3):
            made = head_mean_attention(q, k, v, mask, scale=scale)
            assert made is not None
            expected = scaled_dot_product_attention(q, k, v, mask, scale=scale)
            torch.testing.assert_close(made[0], expected)
            torch.testing.assert_close(made[1], softmax_weights(q, k, v, mask, scale=scale).mean(1))


def test_leaves_the_rest_to_torch() -> None:
    q, k, v = attention()
    long = draw(2, 3, 129, 8)
    refused: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((q, k, v), {"is_causal": True}),
        ((q, k, v), {"dropout_p": 0.1}),
        ((q, k[:, :1], v[:, :1]), {"enable_gqa": True}),
        ((q, k, v), {"attn_mask": draw(12, 5)}),
        ((q, k, v), {"attn_mask": draw(5).requires_grad_()}),
        ((q, long, long), {}),
        ((q[0], k[0], v[0]), {}),
        ((q.double(), k.double(), v.double()), {}),
        ((q, k, v[..., :4]), {}),
        ((q, k[:1], v[:1]), {}),
    ]
    for tensors, options in refused:
        assert head_mean_attention(*tensors, **options) is None
    assert head_mean_attention(q, long[:, :, :128], long[:, :, :128]) is not None


def test_gradients_reach_queries_keys_and_values_from_both_results() -> None:
    q, k, v = (t.requires_grad_() for t in attention())
    to_out, to_map = draw(2, 3, 12, 8, seed=4), draw(2, 12, 5, seed=5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    mask[1] = False  # nothing to look at: no gradient, and no NaN
    out, mean = attention_with_map(q, k, v, mask=mask)
    got = torch.autograd.grad((out * to_out).sum() + (mean * to_map).sum(), (q, k, v))
    exact = tuple(t.detach().double().requires_grad_() for t in (q, k, v))
    weights = (exact[0][:1] @ exact[1][:1].transpose(2, 3) / 8**0.5)[..., :3].softmax(-1)
    loss = ((weights @ exact[2][:1, :, :3]) * to_out[:1]).sum() + (weights.mean(1) * to_map[:1, :, :3]).sum()
    for g, e in zip(got, torch.autograd.grad(loss, exact)):
        torch.testing.assert_close(g.double(), e, atol=1e-6, rtol=1e-5)


def everything(q: Tensor, k: Tensor, v: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    out, mean = attention_with_map(q * 2, k, v)
    pooled = pooled_self_map(q, q + 1, grid=(3, 4), pool=2)
    return (
        out + 1,
        mean,
        pooled,
        feature_epilogue(x, cells=2, matrix=matrix, normalise=True, dtype=torch.float16),
    )


BACKENDS = [
    "eager",
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
        ],
    ),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_into_one_graph(backend: str) -> None:
    arguments = *attention(), draw(2, 6, 5, 5), draw(3, 6)
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    for got, expected in zip(compiled(*arguments), everything(*arguments)):
        assert got.stride() == expected.stride()
        torch.testing.assert_close(got, expected)


def test_what_has_no_gradient_says_so() -> None:
    x = draw(1, 4, 2, 2).requires_grad_()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        feature_epilogue(x, normalise=True).sum().backward()
    q = draw(1, 1, 4, 2).requires_grad_()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        pooled_self_map(q, q, grid=(2, 2)).sum().backward()


def test_without_triton_a_gpu_runs_the_reference_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith("gate.extraction.kernels.programs")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    find_programs.cache_clear()
    q, k, v = attention()
    try:
        with pytest.warns(UserWarning, match="triton is not installed: cross map runs as plain PyTorch"):
            got = cross_map._on_cuda(q, k, v, 0.5, None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            cross_map._on_cuda(q, k, v, 0.5, None)
    finally:
        find_programs.cache_clear()
    for a, b in zip(got, attention_with_map(q, k, v, scale=0.5)):
        assert torch.equal(a, b)


def test_wrong_shapes_are_refused_in_a_sentence() -> None:
    q, k, v = attention()
    x = draw(1, 4, 3, 3)
    for wrong in (
        lambda: attention_with_map(q, k, v[..., :4]),
        lambda: attention_with_map(q, draw(2, 3, 129, 8), draw(2, 3, 129, 8)),
        lambda: attention_with_map(q, k.half(), v),
        lambda: attention_with_map(q.double(), k.double(), v.double()),
        lambda: pooled_self_map(q, q, grid=(3, 5)),
        lambda: pooled_self_map(q, q, grid=(3, 4), pool=0),
        lambda: feature_epilogue(x[0]),
        lambda: feature_epilogue(x, dtype=torch.float64),
        lambda: feature_epilogue(x, mean=draw(4)),
        lambda: feature_epilogue(x, matrix=draw(2, 5)),
        lambda: feature_epilogue(x, matrix=draw(2, 4).double()),
    ):
        with pytest.raises(ConfigurationError, match=r"\.$"):
            wrong()


def test_a_self_map_is_made_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the slab, the same numbers; the weights of one row of cells are the most that is held."""
    from gate.extraction.kernels import self_map

    q, k = draw(2, 2, 35, 8), draw(2, 2, 35, 8, seed=1)
    whole = pooled_self_map(q, k, grid=(7, 5), pool=2)
    monkeypatch.setattr(self_map, "SLAB", 1)
    torch.testing.assert_close(pooled_self_map(q, k, grid=(7, 5), pool=2), whole)
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 1, 12))
