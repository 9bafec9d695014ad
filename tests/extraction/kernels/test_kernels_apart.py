"""The comparisons of this folder again, on Triton's programs: under the interpreter, and on a GPU if there is one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_modes import MODE

HERE = Path(__file__).parent
COMPARISONS = [*sorted(HERE.glob("test_kernels_*_map.py")), HERE / "test_kernels_epilogue.py"]

pytestmark = [
    pytest.mark.skipif(MODE != "reference", reason="this is the process that the others start"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]


def compare(*chosen: str, least: int = 60, **environment: str) -> None:
    """Run comparisons in a process of their own: Triton decides at its import whether it interprets.

    chosen: of pytest's options, all by default. least: how many must pass.
    """
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", *chosen]
    made = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, COMPARISONS)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout[-5000:] + made.stderr[-2000:]
    counted = re.search(r"(\d+) passed", made.stdout)
    assert counted and int(counted[1]) >= least and "skipped" not in made.stdout, made.stdout[-2000:]


INTERPRETED = {"KERNELS_ON": "interpreter", "TRITON_INTERPRET": "1"}


def test_some_under_the_interpreter() -> None:
    """One shape of each program; all of them are `slow`."""
    compare("-k", "test_strides and float16", least=3, **INTERPRETED)


@pytest.mark.slow
def test_under_the_interpreter() -> None:
    compare(**INTERPRETED)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: the kernels ran under the interpreter only"
)
def test_on_the_gpu() -> None:
    compare(KERNELS_ON="cuda", TRITON_INTERPRET="0")
