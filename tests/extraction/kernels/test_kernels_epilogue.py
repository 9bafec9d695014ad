"""The feature epilogue: reference and Triton program against float64."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from kernel_modes import MODE, RUNS
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from gate.errors import ConfigurationError
from gate.extraction.kernels import epilogue
from gate.extraction.kernels.epilogue import feature_epilogue

Draw = Callable[..., Tensor]
Close = Callable[[Tensor, Tensor], None]


def gold(
    x: Tensor,
    cells: int = 0,
    bilinear: bool = False,
    matrix: Tensor | None = None,
    mean: Tensor | None = None,
    normalise: bool = False,
    tokens: bool = False,
) -> Tensor:
    y = x.double()
    if cells:
        y = interpolate(y, (cells, cells), mode="bilinear") if bilinear else adaptive_avg_pool2d(y, cells)
    if matrix is not None:
        centred = y if mean is None else y - mean.double()[:, None, None]
        y = torch.einsum("dc,bchw->bdhw", matrix.double(), centred)
    if normalise:
        y = y / y.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    return y.flatten(2).transpose(1, 2) if tokens else y


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 37, 5, 7), {}),
        ((2, 70, 5, 7), {"normalise": True, "tokens": True}),
        ((2, 5, 9, 7), {"cells": 4}),
        ((1, 5, 9, 11), {"cells": 1, "normalise": True}),
        ((1, 5, 3, 3), {"cells": 5, "tokens": True}),
        ((1, 9, 8, 2), {"cells": 4, "tokens": True}),
        ((2, 3, 9, 11), {"cells": 6, "bilinear": True}),
        ((1, 3, 4, 3), {"cells": 9, "bilinear": True, "normalise": True}),
        ((2, 37, 5, 7), {"project": 10}),
        ((2, 40, 5, 6), {"project": 20, "centre": True, "cells": 3, "normalise": True}),
        ((1, 300, 3, 5), {"project": 270, "centre": True, "normalise": True, "tokens": True}),
        ((1, 300, 4, 4), {"project": 260, "cells": 3, "bilinear": True}),
        ((1, 1, 1, 1), {"normalise": True}),
    ],
    ids=str,
)
def test_odd_sizes(
    shape: tuple[int, ...],
    options: dict[str, Any],
    dtype: torch.dtype,
    draw: Draw,
    close: Close,
    launched: Callable[[ModuleType], list[int]],
) -> None:
    x = draw(*shape).to(dtype)
    options = dict(options)
    if d := options.pop("project", 0):
        options["matrix"] = draw(d, shape[1])
    if options.pop("centre", False):
        options["mean"] = draw(shape[1])
    calls = launched(epilogue)
    for stored in {torch.float32, dtype}:
        got = feature_epilogue(x, dtype=stored, **options)
        assert got.dtype == stored and got.is_contiguous()
        close(got, gold(x, **options))
    assert len(calls) == RUNS * len({torch.float32, dtype})


def test_strides(dtype: torch.dtype, draw: Draw, close: Close) -> None:
    x = draw(2, 20, 5, 12).to(dtype)
    matrix, mean = draw(21, 5).T[:, ::1], draw(42)[::2]  # strides of their own
    for view in (x.contiguous(memory_format=torch.channels_last), x[:, ::2, :, 1::3].transpose(2, 3)):
        options: dict[str, Any] = {"cells": 3, "normalise": True}
        close(feature_epilogue(view, **options), gold(view, **options))
    wide = draw(2, 7, 6, 21).to(dtype).permute(0, 3, 1, 2)
    close(feature_epilogue(wide, matrix=matrix, mean=mean), gold(wide, matrix=matrix, mean=mean))


def test_extreme_values(dtype: torch.dtype, draw: Draw, close: Close) -> None:
    x = draw(1, 6, 3, 3).to(dtype)
    x[:, :, 1] = 0
    x[:, :, 2] = 6e4
    close(feature_epilogue(x, normalise=True, dtype=dtype), gold(x, normalise=True))
    assert not feature_epilogue(x, normalise=True)[:, :, 1].any()
    doubled = feature_epilogue(x, matrix=torch.eye(6, device=x.device) * 2, dtype=torch.float16)
    assert doubled[:, :, 2].isinf().all() and doubled[:, :, :2].isfinite().all()  # for the caller to refuse
    x[0, 0, 0, 0] = float("nan")
    made = feature_epilogue(x, normalise=True)
    assert made[0, :, 0, 0].isnan().all() and made[0, :, 0, 1:].isfinite().all()


def test_empty_batches(dtype: torch.dtype, draw: Draw) -> None:
    x = draw(0, 6, 3, 3).to(dtype)
    assert feature_epilogue(x, cells=2, normalise=True, tokens=True).shape == (0, 4, 6)


def test_the_op_keeps_its_word(draw: Draw) -> None:
    arguments = (draw(2, 6, 5, 5), draw(3, 6), draw(6), 2, False, True, torch.float16, True)
    torch.library.opcheck(epilogue._epilogue, arguments)


if MODE == "interpreter":

    def test_bfloat16_is_refused(draw: Draw) -> None:
        x = draw(1, 6, 3, 3)
        for given, stored in ((x.bfloat16(), torch.float32), (x, torch.bfloat16)):
            with pytest.raises(ConfigurationError, match="computes bfloat16 wrongly"):
                feature_epilogue(given, normalise=True, dtype=stored)
