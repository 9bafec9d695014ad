"""Rows of the peers: a checkout's own loop over the same images and weights, in an interpreter of its own.

The peers need an older diffusers than `gate` does, and draw their noise themselves. So their features cannot be those
of the naive loop; what is held instead is that they are as many, finite, and of one shape in every turn.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.job import Job
from benchmarks.peer_worker import DIFT, kind
from benchmarks.sets import LEGACY
from gate.backbone import Backbone
from gate.errors import ConfigurationError

IDS = {
    "dift": ("up-level1-upsampler-out",),
    "practical": (
        "up-level1-repeat1-vit-block0-cross-q",
        "up-level1-repeat2-res-out",
        "up-level2-repeat1-vit-block0-cross-q",
        "up-level3-repeat0-vit-block0-self-k",
    ),
    "legacy": LEGACY,
    "maps": ("up-level2-repeat1-vit-block0-cross-map",),
}


class Peer:
    """A row: each call is one turn of the worker. seconds: by the worker's own clock, of the last turn."""

    def __init__(self, name: str, worker: subprocess.Popen[str]) -> None:
        self.name, self.worker, self.seconds = name, worker, 0.0
        self.shapes: dict[str, Any] = {}

    def ready(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def __call__(self) -> dict[str, Any]:
        said = _asked(self.worker, {"go": True})
        sums = said["sums"]
        shapes = {key: shape for key, (shape, *_) in sums.items()}
        if not sums or not all(math.isfinite(value) for _, *values in sums.values() for value in values):
            raise ValueError(f"{self.name} gives features that are not finite, or none.")
        if self.shapes and shapes != self.shapes:
            raise ValueError(f"{self.name} gives other shapes in each turn.")
        self.shapes, self.seconds = shapes, said["seconds"]
        return dict(sums)


class Peers:
    """Starts a worker for each cell. A context manager: what is on the disk for them goes at its end.

    checkouts: of DIFT or generic-diffusion-feature. python: the interpreter that has what they need. log: is told in a
    sentence which peer cannot be run, and why.
    """

    def __init__(self, checkouts: list[Path], python: str, log: Any = lambda _: None) -> None:
        self.checkouts, self.python, self.log = [path.resolve() for path in checkouts], python, log
        self.told: dict[str, str] = {}
        self._weights: Path | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Peers:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def rows(self, job: Job, layers: str, backbone: Backbone, dtype: str) -> Iterator[Mapping[str, Peer]]:
        """{"peer NAME": row} of those that can be run. layers: a set's name. dtype: float32 or float16."""
        images, found = self.folder / "images.npy", {}
        np.save(images, job.images.numpy())
        with contextlib.ExitStack() as opened:
            for checkout in self.checkouts:
                asked = {
                    "peer": str(checkout), "weights": str(self._saved(backbone)), "images": str(images), "set": layers,
                    "layers": IDS[layers], "prompts": job.prompts, "timesteps": job.timesteps, "dtype": dtype,
                    "seeds": len(job.seeds), "size": backbone.image_size,
                }  # fmt: skip
                try:
                    name = kind(checkout)
                    worker = opened.enter_context(started(self.python))
                    said = _asked(worker, asked)
                except (ValueError, OSError, ConfigurationError) as error:
                    said = {"error": str(error)}
                if "error" in said:
                    self.told[checkout.name] = f"{checkout.name} is not measured: {said['error']}"
                    self.log(self.told[checkout.name])
                    continue
                found[f"peer {name} {'float32' if name == DIFT else dtype}"] = Peer(name, worker)
            yield found

    def _saved(self, backbone: Any) -> Path:
        """The weights as a folder that every diffusers reads. Raises ConfigurationError for other families."""
        if self._weights is None:
            from diffusers import DDIMScheduler, StableDiffusionPipeline

            if not hasattr(backbone.denoiser, "down_blocks"):
                raise ConfigurationError("the peers' loops are measured on UNets of Stable Diffusion alone")
            scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
            pipeline = StableDiffusionPipeline(
                backbone.vae, backbone.text_encoder, backbone.tokenizer, backbone.denoiser, scheduler, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            pipeline.save_pretrained(self.folder / "weights")
            self._weights = self.folder / "weights"
        return self._weights


@contextlib.contextmanager
def started(python: str) -> Iterator[subprocess.Popen[str]]:
    """The worker in an interpreter of its own; ended at the end."""
    file = Path(__file__).with_name("peer_worker.py")
    worker = subprocess.Popen(
        [python, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.communicate()


def _asked(worker: subprocess.Popen[str], words: Mapping[str, Any]) -> dict[str, Any]:
    """One line there, one line back. Raises ConfigurationError where the worker is gone."""
    assert worker.stdin and worker.stdout
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(json.dumps(words) + "\n")
        worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise ConfigurationError(f"its process ended (status {worker.wait()}), see its errors above")
    return dict(json.loads(line))
