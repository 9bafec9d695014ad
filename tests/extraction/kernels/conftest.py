"""Fixtures of the kernels' comparisons, and the dtypes each of them is made in."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from kernel_modes import DTYPES, MODE, TOLERANCE, take_cpu_tensors_for_cuda
from torch import Tensor

from gate.extraction.kernels.choice import find_programs


def pytest_configure() -> None:
    if MODE == "interpreter":
        take_cpu_tensors_for_cuda()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=[str(d).removeprefix("torch.") for d in DTYPES])


@pytest.fixture
def device() -> str:
    return "cuda" if MODE == "cuda" else "cpu"


@pytest.fixture
def draw(device: str) -> Callable[..., Tensor]:
    """Normal numbers in float32, the same for every test."""
    made = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=made).to(device)


@pytest.fixture
def close(dtype: torch.dtype) -> Callable[[Tensor, Tensor], None]:
    """Fails unless the first is the second, float64, within the tolerance of the input's dtype."""

    def check(got: Tensor, gold: Tensor) -> None:
        assert got.shape == gold.shape and gold.dtype == torch.float64
        error = (got.double() - gold).abs().max() / gold.abs().max().clamp_min(1e-30)
        assert error <= TOLERANCE[dtype], f"relative error {error:.2e}"

    return check


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], list[int]]:
    """Gives the number of times that a module's Triton programs ran: all of what is asked, unless references are."""

    def watch(module: ModuleType) -> list[int]:
        calls: list[int] = []
        if MODE != "reference":
            programs = find_programs(module.__name__.rpartition(".")[2])
            assert programs is not None
            launch = programs.launch
            monkeypatch.setattr(programs, "launch", lambda *a: (calls.append(1), launch(*a))[1])
        return calls

    return watch
