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

MAP, EXPLICIT = "forward with one map", "forward, every softmax explicit"


def measure(backbone: Backbone, batch: int, repeats: int, half: str) -> dict[str, Any]:
    """{dtype: {part: row}}; parts take turns. Half precision is laid out in channels_last."""
    dift, maps = (
        make_job(backbone, "cold", layers_of(name, backbone), Grid(1, batch), batch)
        for name in ("dift", "maps")
    )
    work = counted(backbone, dift.layers, batch)
    gflop = {"encode": work.encode, "cut": work.cut}  # the others are whole forwards
    found: dict[str, Any] = {}
    for dtype in ("float32", half):
        own = backbone if dtype == "float32" else converted(backbone, dtype, channels_last=True)
        rate = attainable(work.products, DTYPES[dtype])["mix"] * 1e3
        calls = _calls(own, HookLoop(own, dift), HookLoop(own, maps))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        with torch.no_grad():
            for turn in range(repeats + 1):
                for name, call in calls.items():
                    spent = taken(call)[0] / batch
                    seconds[name] += [spent] if turn else []  # the first warms up
        found[dtype] = {name: _row(gflop.get(name, work.forward), rate, seconds[name]) for name in calls}
    return found


def _row(gflop: float, rate: float, seconds: list[float]) -> dict[str, Any]:
    floor = gflop / rate
    share = floor / statistics.median(seconds)
    return {"gflop": gflop, "floor_seconds": floor, "seconds": seconds, "share": share}


def _calls(backbone: Any, plain: HookLoop, explicit: HookLoop) -> dict[str, Any]:
    """The parts as a loop calls them: an image encoded alone; a forward up to DIFT's layer; a whole one; one that gives
    a map of one layer; and one with an explicit softmax in every attention, which is how others get that map."""
    text = plain._text("")
    x = plain._latents(plain.job.images).to(plain.dtype)
    t = torch.full((len(x),), 50)
    given = {key: value.repeat(len(x), *[1] * (value.ndim - 1)) for key, value in text.items()}
    pixels = (plain.job.images * 2 - 1).to(plain.dtype).chunk(len(x))

    def captured(layers: tuple[str, ...], stop: bool) -> None:
        paths = {layer: backbone.layer_paths[layer] for layer in layers}
        with capture(backbone.denoiser, paths, stop=stop):
            plain._denoise(x, t, given)

    def everywhere() -> None:
        with explicit.ready():
            explicit._denoise(x, t, given)

    return {
        "encode": lambda: [plain.encode(one) for one in pixels],
        "cut": lambda: captured(plain.job.layers, True),
        "forward": lambda: plain._denoise(x, t, given),
        MAP: lambda: captured(explicit.job.layers, False),
        EXPLICIT: everywhere,
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
