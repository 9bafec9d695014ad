"""The Triton programs compile for GPUs, with the tiles that a launch gives them; no GPU is needed for that."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_modes import MODE
from torch import Tensor

from gate.extraction.kernels import cross_map, epilogue, self_map
from gate.extraction.kernels.choice import find_programs

AMPERE, HOPPER = 80, 90
SHARED = 101_376  # bytes that a program may take on the smallest cards since Ampere (compute capability 8.6 and 8.9)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Recorder:
    """Stands where a Triton program does and keeps what it is launched with."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.append((args, kwargs))

    def compile(self, capability: int) -> list[Any]:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        made = []
        for args, kwargs in self.launches:
            options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
            given = {**dict(zip(self.program.arg_names, args)), **kwargs}
            values = {name: given[name] for name in self.program.arg_names}
            signature = {name: kind(name, value) for name, value in values.items()}
            constants = {name: values[name] for name, of in signature.items() if of == "constexpr"}
            source = ASTSource(fn=self.program, signature=signature, constexprs=constants)
            made.append(compile(source, target=GPUTarget("cuda", capability, 32), options=options))
        return made


def kind(name: str, value: Any) -> str:
    """Triton's word for an argument's type."""
    names = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
    if isinstance(value, Tensor):
        return names[value.dtype]
    if name.isupper() or value is None or value == 1:
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def launch(dtype: torch.dtype) -> None:
    """Stable Diffusion's sizes, on tensors without memory."""
    q, k = (torch.empty(2, 8, n, 160, dtype=dtype, device="meta") for n in (1024, 77))
    cross_map._on_cuda(q, k, k, 0.1, torch.empty(2, 8, 77, device="meta"))
    cross_map._on_cuda(q[..., :40], k[..., :40], k[..., :40], 0.1, None)
    self_map._on_cuda(q[..., :80], q[..., :80], 32, 32, 4, 2, 0.1, True)
    x = torch.empty(2, 1280, 16, 16, dtype=dtype, device="meta")
    matrix, mean = torch.empty(256, 1280, device="meta"), torch.empty(1280, device="meta")
    epilogue._on_cuda(x, matrix, mean, 8, True, True, dtype, True)
    epilogue._on_cuda(x, None, None, 8, False, True, dtype, False)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(MODE == "interpreter", reason="an interpreted program is not compiled")
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_programs_compile(stored: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    recorders = []
    for module, names in (
        ("cross_map", ["_attend"]),
        ("self_map", ["_sums", "_cells"]),
        ("epilogue", ["_finish"]),
    ):
        programs = find_programs(module)
        for name in names:
            recorders.append(Recorder(getattr(programs, name)))
            monkeypatch.setattr(programs, name, recorders[-1])
    launch(stored)
    assert [len(r.launches) for r in recorders] == [2, 1, 1, 2]
    for capability in (AMPERE, HOPPER):
        for recorder in recorders:
            for made in recorder.compile(capability):
                assert made.asm["cubin"] and made.metadata.shared <= SHARED
                if stored != torch.float32 and recorder.program.__name__ in ("_attend", "_sums", "_cells"):
                    assert "mma" in made.asm["ptx"]  # tensor cores: wgmma on Hopper
