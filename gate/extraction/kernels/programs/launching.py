"""What every launch needs: tile sizes, and the refusal of what the interpreter gets wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction

from gate.errors import ConfigurationError


def refuse_bfloat16(program: Any, dtypes: Iterable[torch.dtype]) -> None:
    """Raises ConfigurationError where Triton interprets on the CPU and bfloat16 is involved."""
    if torch.bfloat16 in dtypes and isinstance(program, InterpretedFunction):
        raise ConfigurationError(
            "Triton's interpreter computes bfloat16 wrongly without saying so; "
            "use float32 or float16, or unset TRITON_INTERPRET."
        )


def power_of_two(n: int, *, least: int = 16) -> int:
    """The smallest power of two that holds n, and no less than the tensor cores take."""
    return max(least, 1 << (n - 1).bit_length())


def attention_tiles(d: int, dtype: torch.dtype) -> dict[str, Any]:
    """Queries in a tile, and how the d channels are cut: 16, 32 or 64 at a time, what pads least, the wider of two.

    float32 is multiplied exactly, and so without tensor cores, out of registers: smaller tiles keep it from spilling
    them, which the assembler reports.
    """
    exact = dtype == torch.float32
    widths = (32,) if exact else (64, 32)
    width = power_of_two(d) if d <= 32 else min(widths, key=lambda w: -(-d // w) * w)
    cut = {"WIDTH": width, "CHUNKS": -(-d // width), "PRECISION": precision(dtype)}
    return {"ROWS": 32 if exact else 64, **cut, "num_stages": 1 if exact else 3}


def precision(dtype: torch.dtype) -> str:
    """How products are made: float32 is to keep its bits; of halves, tensor cores keep all, of what they became 11."""
    return "ieee" if dtype == torch.float32 else "tf32"
