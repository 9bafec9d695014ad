"""Whether a CUDA tensor meets a Triton program or, said aloud, the PyTorch reference."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor

from gate.errors import ConfigurationError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def find_programs(name: str) -> ModuleType | None:
    """The module of Triton programs called `name`; None, with a warning, where triton is not installed."""
    try:
        return importlib.import_module(f"gate.extraction.kernels.programs.{name}")
    except ModuleNotFoundError as e:
        if e.name != "triton":
            raise
    warnings.warn(
        f"triton is not installed: {name.replace('_', ' ')} runs as plain PyTorch on this GPU, which is slower and "
        "needs more memory; install triton for the fused program.",
        stacklevel=2,
    )
    return None


def check_tensors(what: str, *tensors: Tensor) -> None:
    """Raises ConfigurationError unless all have one of DTYPES, the same one, and lie on one device."""
    first = tensors[0]
    if first.dtype not in DTYPES:
        raise ConfigurationError(
            f"{what} takes float32, float16 or bfloat16, not {first.dtype}; convert it first."
        )
    for other in tensors[1:]:
        if other.dtype != first.dtype or other.device != first.device:
            raise ConfigurationError(
                f"{what} takes tensors of one dtype on one device, not {first.dtype} on {first.device} beside "
                f"{other.dtype} on {other.device}; move them together first."
            )
