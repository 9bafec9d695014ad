"""What the comparisons in this folder run: PyTorch's references, or Triton's programs, interpreted or on a GPU.

The default is the references, on the CPU. `test_kernels_apart.py` starts a process for each of the others, with
KERNELS_ON set: Triton decides at its import whether it interprets.
"""

from __future__ import annotations

import dataclasses
import os

import torch

from gate.extraction.kernels import cross_map, epilogue, self_map

MODE = os.environ.get("KERNELS_ON", "reference")
assert MODE in ("reference", "interpreter", "cuda")
# under the interpreter bfloat16 is refused
DTYPES = [torch.float32, torch.float16, *([] if MODE == "interpreter" else [torch.bfloat16])]
# relative to the largest value, against float64 on the same inputs
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
RUNS = 0 if MODE == "reference" else 1  # how often a call runs Triton's programs


def take_cpu_tensors_for_cuda() -> None:
    """Under the interpreter, CPU tensors go the way of CUDA tensors."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
    from triton.runtime.interpreter import interpreter_builder

    # a third of the time goes into looking for overflows of indices, which sizes like these cannot have
    if hasattr(interpreter_builder.options, "sanitize_overflow"):
        interpreter_builder.options = dataclasses.replace(
            interpreter_builder.options, sanitize_overflow=False
        )
    cross_map._cross_map.register_kernel("cpu")(cross_map._on_cuda)
    self_map._self_map.register_kernel("cpu")(self_map._on_cuda)
    epilogue._epilogue.register_kernel("cpu")(epilogue._on_cuda)
