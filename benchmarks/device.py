"""The device that a figure belongs to, and what it can do at best: matmul rates and bandwidth, measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

SECONDS = 0.25  # that one rate is measured for
BEST = 3  # measurements, of which the best counts: a roofline is what the device can do
FLAGS = {
    "avx2": "_is_avx2_supported",
    "avx512": "_is_avx512_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx": "_is_amx_tile_supported",
}
SQUARE = (2048, 2048, 2048)
MEGABYTES = 256  # that are copied: more than caches hold


def describe(device: str = "cpu") -> dict[str, Any]:
    """Names, cores, instructions, versions: what a reader needs to place a figure."""
    import diffusers

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [name for name, ask in FLAGS.items() if getattr(torch.cpu, ask, lambda: False)()],
        "compiler": bool(shutil.which("g++") or shutil.which("clang++")),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_memory": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    return found


def slug(described: dict[str, Any]) -> str:
    """A file name's worth of it."""
    name = described.get("gpu") or f"{described['processor']} {described['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def sentence(described: dict[str, Any]) -> str:
    """One line for people."""
    cpu = (
        f"{described['processor']}, {described['cores']} cores ({', '.join(described['flags']) or 'no AVX2'})"
    )
    versions = f"torch {described['torch']}, diffusers {described['diffusers']}"
    return f"{described['gpu']}, {versions}" if "gpu" in described else f"{cpu}, {versions}"


def matmul_rate(shape: Sequence[int], dtype: torch.dtype, device: str = "cpu") -> float:
    """TFLOP/s of (m, k) @ (k, n), the best of three. shape: m, n, k."""
    m, n, k = shape
    a, b = torch.randn(m, k).to(device, dtype), torch.randn(k, n).to(device, dtype)
    out = torch.empty(m, n, dtype=dtype, device=device)
    return 2 * m * n * k / _best(lambda: torch.mm(a, b, out=out), device) / 1e12


def bandwidth(device: str = "cpu") -> float:
    """GB/s of copying a buffer larger than the caches: read once, written once."""
    a = torch.ones(MEGABYTES << 18, device=device)
    b = torch.zeros_like(a)
    return 2 * a.nbytes / _best(lambda: b.copy_(a), device) / 1e9


def _best(work: Callable[[], Any], device: str) -> float:
    """Seconds of one call: the best mean of three runs."""
    cuda = device.startswith("cuda")

    def run(times: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    run(2)
    once = run(2)
    times = max(1, int(SECONDS / max(once, 1e-7)))
    return min(run(times) for _ in range(BEST))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
