"""python -m benchmarks.stores: a folder of images to features on the disk, `gate extract` against a user's script.

The whole way: files are read and decoded, features are written. What `gate extract` does besides (digests, a manifest,
whole shards) is in its time.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.compare import difference
from benchmarks.device import describe, slug
from benchmarks.extraction import write
from benchmarks.hooks import HookLoop
from benchmarks.job import Job, Outputs, pictures
from benchmarks.measure import stderr
from benchmarks.models import converted
from benchmarks.results import FOLDER
from benchmarks.sets import layers_of
from benchmarks.timing import alternated, ratios, taken
from gate.backbones import load_backbone
from gate.sample import Sample, SampleSet

USER, USER_HALF = "script float32", "script bfloat16"
WAYS: dict[str, dict[str, Any]] = {
    "gate extract, one process": {"workers": 1, "cache": False},
    "gate extract": {"cache": False},
    "gate extract, latents cached": {"cache": True},
    "gate extract --precision fast": {"cache": False, "precision": "fast"},
}
PAIRS = [
    (USER, "gate extract, one process"), (USER, "gate extract"), (USER, "gate extract, latents cached"),
    (USER_HALF, "gate extract --precision fast"), ("gate extract, one process", "gate extract"),
]  # fmt: skip


class Script:
    """What a user writes: batches of files through the hook loop, a file of features for each image."""

    def __init__(
        self, backbone: Any, files: list[Path], layers: tuple[str, ...], output: Path, batch: int
    ) -> None:
        self.files, self.output, self.batch = files, output, batch
        blank = Sample(np.zeros((backbone.image_size, backbone.image_size, 3), np.uint8))
        self.size = backbone.image_size
        self.loop = HookLoop(backbone, Job("cold", SampleSet((blank,)), ("",), (50,), (0,), layers, batch))

    def ready(self) -> Any:
        return self.loop.ready()

    def __call__(self) -> Outputs:
        self.output.mkdir(parents=True, exist_ok=True)
        for i in range(0, len(self.files), self.batch):
            files = self.files[i : i + self.batch]
            images = [Image.open(file).convert("RGB").resize((self.size, self.size)) for file in files]
            samples = SampleSet(tuple(Sample(np.asarray(image)) for image in images))
            self.loop.job = Job("cold", samples, ("",), (50,), (0,), self.loop.job.layers, self.batch)
            features = self.loop()[0, 50, 0]
            for k, file in enumerate(files):
                made = {layer: value[k].clone() for layer, value in features.items()}
                torch.save(made, self.output / f"{file.stem}.pt")
        made = [torch.load(self.output / f"{file.stem}.pt") for file in self.files]
        return {(0, 50, 0): {layer: torch.stack([m[layer] for m in made]).float() for layer in made[0]}}


class Extracted:
    """`gate extract` into a fresh store; each turn makes it anew."""

    def __init__(self, folder: Path, layers: tuple[str, ...], store: Path, **options: Any) -> None:
        self.options = {
            "images": str(folder),
            "layers": layers,
            "backbone": "tiny",
            "timestep": 50,
            **options,
        }
        self.store, self.turn = store, 0

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        self.turn += 1
        yield

    def __call__(self) -> Outputs:
        from gate.extraction import extract, load_features

        output = self.store.with_name(f"{self.store.name}-{self.turn}")
        extract(output=str(output), **self.options)
        store = load_features(output)
        found: dict[str, Tensor] = store[0 : len(store)]
        return {(0, 50, 0): {layer: value.float() for layer, value in found.items()}}


def measure(
    images: int, repeats: int, batch: int, folder: Path, ways: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Of so many 64 px images on `tiny`. folder: for everything that is written."""
    files = []
    (folder / "images").mkdir()
    for i, sample in enumerate(pictures(images, 64)):
        files.append(folder / "images" / f"{i:06d}.png")
        Image.fromarray(sample.image).save(files[-1])
    backbone = load_backbone("tiny", device="cpu")
    layers = layers_of("dift", backbone)
    rows: dict[str, Any] = {
        USER: Script(backbone, files, layers, folder / "script", batch),
        USER_HALF: Script(
            converted(backbone, "bfloat16", channels_last=True), files, layers, folder / "half", batch
        ),
    }
    for i, (name, options) in enumerate(ways.items()):
        rows[name] = Extracted(folder / "images", layers, folder / f"store{i}", **options)
    first, outputs = {}, {}
    for name, row in rows.items():
        with row.ready():
            first[name], outputs[name] = taken(row)
        stderr(f"{name}: {first[name]:.2f} s at first")
    differences = {name: difference(made, outputs[USER]).as_dict() for name, made in outputs.items()}
    seconds = alternated(rows, repeats)
    made = [
        {
            "name": name, "first_seconds": first[name], "seconds": seconds[name], "difference": differences[name],
            "images_per_second": images / min(seconds[name]),
        }
        for name in rows
    ]  # fmt: skip
    return {"images": images, "rows": made, "ratios": [r.as_dict() for r in ratios(seconds, PAIRS)]}


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="of the script")
    parser.add_argument("--output", type=Path, default=FOLDER)
    asked = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.images, asked.repeats, asked.batch, Path(folder), WAYS)
    command = ["python", "-m", "benchmarks.stores", *(sys.argv[1:] if given is None else given)]
    whole = {"schema": 1, "command": " ".join(command), "device": describe(), "stores": found}
    write(whole, asked.output, f"stores-tiny-{slug(whole['device'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
