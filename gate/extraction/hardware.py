"""What the processor has, asked and not assumed."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from gate.machine import forkable_cores


@dataclass(frozen=True)
class Processor:
    """name: as it calls itself. cores: that this process may use. flags: of avx2, avx512, bf16, amx, those that torch
    finds. compiler: a C++ compiler's path, "" where there is none."""

    name: str
    cores: int
    flags: tuple[str, ...]
    compiler: str

    @property
    def fast_bfloat16(self) -> bool:
        """Whether products of bfloat16 have instructions of their own."""
        return bool({"bf16", "amx"} & set(self.flags))

    def __str__(self) -> str:
        return f"{self.name}, {self.cores} core{'s' if self.cores > 1 else ''}, {' '.join(self.flags) or 'no AVX2'}"


@functools.cache
def processor() -> Processor:
    """This machine's."""
    asked = {
        "avx2": "_is_avx2_supported",
        "avx512": "_is_avx512_supported",
        "bf16": "_is_avx512_bf16_supported",
        "amx": "_is_amx_tile_supported",
    }
    flags = tuple(flag for flag, ask in asked.items() if getattr(torch.cpu, ask, lambda: False)())
    cores = forkable_cores() if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    compiler = next((found for name in ("g++", "clang++", "cl") if (found := shutil.which(name))), "")
    return Processor(_name(), max(cores, 1), flags, compiler)


def _name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return platform.machine()
