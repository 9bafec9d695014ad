"""python -m benchmarks.extraction: the screen's grid and the final pass, ours against a user's loop and the peers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.device import slug
from benchmarks.job import MODES, Grid
from benchmarks.measure import Settings, measure, stderr
from benchmarks.models import DTYPES, MODELS
from benchmarks.results import FOLDER, write_json
from benchmarks.sets import NAMES
from benchmarks.table import table


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--size", type=int, default=0, help="pixels a side; 0 is the model's own")
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    grid = "prompts, images, seeds, timesteps of a screen; a final pass takes the images alone"
    parser.add_argument("--grid", type=Grid.parse, default=Grid(4, 4, 2, 1), metavar="K,N,S,T", help=grid)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--half", choices=[d for d in DTYPES if d != "float32"], default="bfloat16")
    parser.add_argument(
        "--compiled", action="store_true", help="a row of hooks on a compiled denoiser; minutes"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 is its own choice")
    parser.add_argument("--output", type=Path, default=FOLDER)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    asked = arguments(given)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    settings = Settings(
        asked.model,
        asked.size,
        tuple(asked.sets),
        tuple(asked.modes),
        asked.grid,
        asked.batch,
        asked.repeats,
        asked.half,
        asked.compiled,
        device=asked.device,
    )
    found = measure(settings, log=stderr)
    command = ["python", "-m", "benchmarks.extraction", *(sys.argv[1:] if given is None else given)]
    found = {"command": " ".join(command), **found}
    write(found, asked.output, f"{asked.model}-{found['size']}-{slug(found['device'])}")
    print(table(found))
    return 0


def write(found: dict[str, object], folder: Path, name: str) -> None:
    """NAME.json, and NAME.md for people."""
    write_json(found, folder, name).with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
