"""python -m benchmarks.extraction: the screen's grid and the final pass, ours against a user's loop and the peers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import slug
from benchmarks.job import MODES, Grid
from benchmarks.measure import Settings, measure, stderr
from benchmarks.models import DTYPES, MODELS
from benchmarks.peers import Peers
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
    peer = "a checkout of DIFT or generic-diffusion-feature; may be given twice"
    parser.add_argument("--peer", type=Path, action="append", default=[], metavar="PATH", help=peer)
    python = "an interpreter that has what the peers need: CUDA, torchvision and their own diffusers"
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help=python)
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
    command = " ".join(["python", "-m", "benchmarks.extraction", *(sys.argv[1:] if given is None else given)])

    def keep(found: dict[str, Any]) -> None:
        said = {"peers": [*peers.told.values()]} if asked.peer else {}
        write({"command": command, **said, **found}, asked.output, file_name(settings, found))

    with Peers(asked.peer, asked.peer_python, stderr) as peers:
        print(table(measure(settings, peers=peers, log=stderr, keep=keep)))
    return 0


def file_name(settings: Settings, found: dict[str, Any]) -> str:
    """By model, size and device; and by what was asked for where that is not all, so that parts lie side by side."""
    some = [*settings.modes] if set(settings.modes) != set(MODES) else []
    some += [*settings.sets] if set(settings.sets) != set(NAMES) else []
    return "-".join([settings.model, str(found["size"]), *some, slug(found["device"])])


def write(found: dict[str, object], folder: Path, name: str) -> None:
    """NAME.json, and NAME.md for people."""
    write_json(found, folder, name).with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
