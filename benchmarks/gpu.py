"""python -m benchmarks.gpu: what docs/performance.md demands of a GPU, measured and written with the device named."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import describe, slug
from benchmarks.extraction import write
from benchmarks.job import Grid
from benchmarks.kernels import CROSS, FEATURES, epilogues, head_mean
from benchmarks.measure import Settings, measure, stderr
from benchmarks.results import FOLDER, write_json

MISSING = "There is no CUDA device here: nothing was measured, and docs/performance.md goes on saying so."
NO_DEVICE = 3


def measured_kernels(device: str, dtypes: tuple[str, ...], **small: Any) -> dict[str, Any]:
    """Head-mean maps and epilogues. small: other shapes, repeats, inner, for a miniature."""
    cross, features = small.pop("cross", CROSS), small.pop("features", FEATURES)
    return {
        "schema": 1,
        "device": describe(device),
        "head_mean": [row for dtype in dtypes for row in head_mean(device, dtype, cross, **small)],
        "epilogue": [row for dtype in dtypes for row in epilogues(device, dtype, features, **small)],
    }


def settings(device: str, batch: int = 32, model: str = "sd15", half: str = "float16") -> list[Settings]:
    """The screen at the peer's own batch of 2 and ours, final passes cold and cached against the strong naive loop."""
    common: dict[str, Any] = {
        "model": model, "batch": batch, "half": half, "exact": False, "device": device, "sets": ("dift", "practical"),
    }  # fmt: skip
    return [
        Settings(**common, modes=("screen",), grid=Grid(4, batch, 2, 1), small_batch=2),
        Settings(**common, modes=("cold", "cached"), grid=Grid(1, 4 * batch), compiled=True),
    ]


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="say whether there is a device, and measure nothing"
    )
    parser.add_argument("--output", type=Path, default=FOLDER)
    asked = parser.parse_args(given)
    if not torch.cuda.is_available():
        stderr(MISSING)
        return NO_DEVICE
    if asked.check:
        return 0
    kernels = measured_kernels("cuda", ("float16", "bfloat16"))
    name = slug(kernels["device"])
    write_json(kernels, asked.output, f"kernels-{name}")
    whole: dict[str, Any] = {}
    for one in settings("cuda"):
        found = measure(one, log=stderr)
        whole = {**found, "cells": [*whole.get("cells", ()), *found["cells"]], "command": "benchmarks/gpu.sh"}
        write(
            whole, asked.output, f"sd15-{found['size']}-{name}"
        )  # what is there is kept where the next part fails
    return 0


if __name__ == "__main__":
    sys.exit(main())
