"""python -m benchmarks.parts: seconds of the parts of a pass, each beside what its FLOPs would take.

Where a job's floor is far from its time, this says in which part: the encoder, the denoiser to its last wanted layer,
the whole denoiser.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import describe, slug
from benchmarks.floors import attainable, counted
from benchmarks.hooks import HookLoop
from benchmarks.job import Grid, make_job
from benchmarks.models import DTYPES, MODELS, converted, load
from benchmarks.results import FOLDER, write_json
from benchmarks.sets import layers_of
from benchmarks.timing import taken
from gate.backbone import Backbone
from gate.backbones.activations import capture


def measure(backbone: Backbone, batch: int, repeats: int, half: str) -> dict[str, Any]:
    """{dtype: {part: row}}; parts take turns. Half precision is laid out in channels_last."""
    layers = layers_of("dift", backbone)
    work = counted(backbone, layers, batch)
    job = make_job(backbone, "cold", layers, Grid(1, batch), batch)
    found: dict[str, Any] = {}
    for dtype in ("float32", half):
        own = backbone if dtype == "float32" else converted(backbone, dtype, channels_last=True)
        rate = attainable(work.products, DTYPES[dtype])["mix"] * 1e3
        parts = {"encode": work.encode, "cut": work.cut, "forward": work.forward}
        calls = _calls(own, HookLoop(own, job))
        with torch.no_grad():
            for call in calls.values():
                call()
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(repeats):
                for name, call in calls.items():
                    seconds[name].append(taken(call)[0] / batch)
        found[dtype] = {
            name: {
                "gflop": parts[name], "floor_seconds": parts[name] / rate, "seconds": seconds[name],
                "share": parts[name] / rate / statistics.median(seconds[name]),
            }
            for name in calls
        }  # fmt: skip
    return found


def _calls(backbone: Any, loop: HookLoop) -> dict[str, Any]:
    """The parts as the loop calls them. An image is encoded alone."""
    text = loop._text("")
    x = loop._latents(loop.job.images).to(loop.dtype)
    t = torch.full((len(x),), 50)
    given = {key: value.repeat(len(x), *[1] * (value.ndim - 1)) for key, value in text.items()}
    pixels = (loop.job.images * 2 - 1).to(loop.dtype)
    layers = loop.job.layers

    def cut() -> None:
        with capture(backbone.denoiser, {layer: backbone.layer_paths[layer] for layer in layers}, stop=True):
            loop._denoise(x, t, given)

    return {
        "encode": lambda: [loop.encode(one) for one in pixels.split(1)],
        "cut": cut,
        "forward": lambda: loop._denoise(x, t, given),
    }


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--size", type=int, default=0, help="pixels a side; 0 is the model's own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--half", choices=[d for d in DTYPES if d != "float32"], default="bfloat16")
    parser.add_argument("--output", type=Path, default=FOLDER)
    asked = parser.parse_args(given)
    backbone = load(asked.model, asked.size)
    parts = measure(backbone, asked.batch, asked.repeats, asked.half)
    command = ["python", "-m", "benchmarks.parts", *(sys.argv[1:] if given is None else given)]
    found = {
        "schema": 1, "command": " ".join(command), "device": describe(), "model": asked.model,
        "size": backbone.image_size, "batch": asked.batch, "parts": parts,
    }  # fmt: skip
    name = f"parts-{asked.model}-{backbone.image_size}-batch{asked.batch}-{slug(found['device'])}"
    write_json(found, asked.output, name)
    print(table(found))
    return 0


def table(found: Mapping[str, Any]) -> str:
    """Rows for the page."""
    lines = []
    for dtype, parts in found["parts"].items():
        for name, row in parts.items():
            spread = f"{statistics.median(row['seconds']):.3g} [{min(row['seconds']):.3g}, {max(row['seconds']):.3g}]"
            where = f"{found['model']} {found['size']} px, batch {found['batch']} | {dtype} | {name}"
            lines.append(
                f"| {where} | {row['gflop']:.3g} | {spread} | {row['floor_seconds']:.3g} | {row['share']:.0%} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
