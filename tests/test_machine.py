"""Memory that runs out: halved where there is a batch, told where there is none, and no other error taken for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gate.cli.failures import explain
from gate.errors import ConfigurationError, OutOfMemoryError
from gate.machine import halving, is_out_of_memory, one_fits

SAID = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
]


@pytest.mark.parametrize("error", SAID, ids=str)
def test_a_batch_is_halved_until_it_fits(error: Exception) -> None:
    tried: list[int] = []
    lines: list[str] = []

    def work(rows: int) -> int:
        tried.append(rows)
        if rows > 3:
            raise error
        return rows

    assert halving(work, 13, "it", "wait", log=lines.append) == 3 and tried == [13, 6, 3]
    assert lines == [f"out of memory in it: going on with batches of {n}" for n in (6, 3)]
    with pytest.raises(OutOfMemoryError, match="it does not fit into memory even at batch size 1; wait"):
        halving(lambda rows: work(rows + 3), 4, "it", "wait")
    with pytest.raises(OutOfMemoryError, match="in it; use a smaller --image-size"), one_fits("it"):
        raise error
    message, code = explain(error)
    assert code == OutOfMemoryError.exit_code and "bug" not in message and "--image-size" in message


def test_another_error_is_none_of_memory() -> None:
    def work(rows: int) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(work, 4, "it", "wait")
    assert not is_out_of_memory(ConfigurationError("out of memory, it says"))


def test_the_reference_pass_is_halved_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from gate.screening import bench
    from gate.screening.config import make_config

    config = make_config({"samples": 8, "batch_size": 8, "probes": [], "device": "cpu", "layers": "mid"})
    plain = bench.open_bench(config)
    real = bench.stream

    def stream(plan: Any) -> Any:
        if plan.batch_size > 2:
            raise torch.OutOfMemoryError("no room")
        return real(plan)

    monkeypatch.setattr(bench, "stream", stream)
    lines: list[str] = []
    halved = bench.open_bench(config, log=lines.append)
    assert halved.batch_size == 2 and [line for line in lines if "reference pass" in line]
    rows = slice(0, 8)
    a, b = plain.reference(rows), halved.reference(rows)
    torch.testing.assert_close(a.prediction, b.prediction, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.features["mid"], b.features["mid"], rtol=1e-4, atol=1e-5)
