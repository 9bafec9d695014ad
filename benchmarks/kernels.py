"""The kernels by themselves: the head-mean map against its alternatives, the epilogue against the bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.device import bandwidth
from benchmarks.models import DTYPES
from benchmarks.timing import ratios, taken

CROSS = (
    (8, 8, 4096, 77, 40),
    (8, 8, 1024, 77, 80),
    (8, 8, 256, 77, 160),
)  # b, heads, n, m, d: SD 1.5 at 512 px
FEATURES = ((8, 1280, 16, 16), (8, 1280, 32, 32), (8, 640, 64, 64))  # b, c, h, w: its up1, up2, up3
INNER = 50  # calls that one time is taken over: one alone is shorter than the clock is good for
EPILOGUES: Mapping[str, Mapping[str, Any]] = {
    "cast": {"dtype": torch.float16},
    "cast, pool 8, L2": {"dtype": torch.float16, "cells": 8, "normalise": True},
    "cast, L2, tokens": {"dtype": torch.float16, "normalise": True, "tokens": True},
}


def head_mean(
    device: str, dtype: str, shapes: Sequence[Sequence[int]] = CROSS, repeats: int = 5, inner: int = INNER
) -> list[dict[str, Any]]:
    """Per shape: seconds of the fused op, an explicit softmax, attention without a map; errors against float64."""
    from gate.extraction.kernels.cross_map import attention_with_map

    found = []
    for b, heads, n, m, d in shapes:
        q, k, v = (torch.randn(b, heads, size, d).to(device, DTYPES[dtype]) for size in (n, m, m))
        works: dict[str, Callable[[], Any]] = {
            "fused": lambda q=q, k=k, v=v: attention_with_map(q, k, v),
            "explicit": lambda q=q, k=k, v=v: explicit(q, k, v),
            "attention": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v),
        }
        truth = explicit(q.double(), k.double(), v.double())
        errors = {name: _errors(work(), truth) for name, work in works.items()}
        seconds = _alternated(works, repeats, inner)
        pairs = ratios(seconds, (("explicit", "fused"), ("fused", "attention")))
        found.append(
            {
                "shape": [b, heads, n, m, d],
                "dtype": dtype,
                "seconds": seconds,
                "errors": errors,
                "ratios": [ratio.as_dict() for ratio in pairs],
            }
        )
    return found


def explicit(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and the mean of its softmax over heads, as a matrix: what every peer computes."""
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return weights @ v, weights.mean(1)


def epilogues(
    device: str, dtype: str, shapes: Sequence[Sequence[int]] = FEATURES, repeats: int = 5, inner: int = INNER
) -> list[dict[str, Any]]:
    """Per shape and epilogue: GB/s of what must be read and written, and its share of the measured bandwidth."""
    from gate.extraction.kernels.epilogue import feature_epilogue

    speed = bandwidth(device)
    found = []
    for shape in shapes:
        x = torch.randn(*shape).to(device, DTYPES[dtype])
        for name, options in EPILOGUES.items():
            work: Callable[[], Any] = lambda x=x, options=options: feature_epilogue(x, **options)  # noqa: E731
            moved = x.nbytes + work().nbytes
            seconds = _alternated({name: work}, repeats, inner)[name]
            rate = moved / statistics.median(seconds) / 1e9
            found.append(
                {
                    "shape": list(shape), "dtype": dtype, "name": name, "seconds": seconds, "gb_s": rate,
                    "share": rate / speed,
                }
            )  # fmt: skip
    return found


def _alternated(works: Mapping[str, Callable[[], Any]], repeats: int, inner: int) -> dict[str, list[float]]:
    """Seconds of one call, taken over `inner` of them, in turns; the first turn warms up and compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            spent = taken(lambda work=work: [work() for _ in range(inner)])[0] / inner
            if turn:
                seconds[name].append(spent)
    return seconds


def _errors(found: Any, truth: tuple[Tensor, Tensor]) -> list[float]:
    """Largest error over largest value, of the attention and of the map where there is one."""
    given = found if isinstance(found, tuple) else (found,)
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(given, truth)]
