"""The work of one process: chunks of images are read ahead, go through techniques, and are written behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gate.errors import GateError, PluginError
from gate.extraction.behind import AsyncWriter
from gate.extraction.engine import Features, Work, features_of
from gate.extraction.images import Skipped, parted
from gate.extraction.latents import LatentCache, encode_cached
from gate.extraction.plan import Setting
from gate.extraction.store import StoreWriter
from gate.machine import halving
from gate.sample import Sample, SampleSet

if TYPE_CHECKING:
    from torch import Tensor

    from gate.extraction.request import Images

PIECE, PIECE_BYTES = (
    256,
    50 << 20,
)  # of images in memory as pixels; a piece is a file of the latent cache, too
Progress = Callable[[str, int, int], None]


class Count:
    """progress(words, done, total), with the images per second."""

    def __init__(self, progress: Progress, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total
        self.began, self.before = time.perf_counter(), done

    def __call__(self, rows: int) -> None:
        self.done += rows
        rate = (self.done - self.before) / max(time.perf_counter() - self.began, 1e-9)
        self.progress(f"{rate:.1f} images/s", self.done, self.total)


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks that this process draws: images are decoded ahead, go through every technique that lacks them a piece
    at a time, and are written behind. So two pieces of images are in memory and the features of some shards, however
    many images a shard has."""

    work: Work
    writers: Mapping[str, StoreWriter]
    missing: Mapping[str, set[int]]
    images: Images
    setting: Setting
    first: SampleSet
    cache: LatentCache | None

    def __call__(self, chunks: Iterator[int], tick: Callable[[int], None]) -> None:
        writer = next(iter(self.writers.values()))
        ahead = min(self.piece, writer.per_shard)  # no further, or one process draws what others could do
        drawn: deque[tuple[int, int]] = deque()

        def rows() -> Iterator[int]:
            for k in chunks:
                span = range(len(self.images))[writer.rows(k)]
                drawn.append((k, len(span)))
                yield from span

        with contextlib.ExitStack() as opened:
            behind = {n: opened.enter_context(AsyncWriter(w)) for n, w in self.writers.items()}
            decoded = opened.enter_context(contextlib.closing(self.images.each(rows(), ahead=ahead)))
            for head in decoded:
                k, size = drawn.popleft()
                found = itertools.chain([head], itertools.islice(decoded, size - 1))
                for name, made in self._made(k, size, found, tick).items():
                    behind[name].put(k, *made)

    @property
    def piece(self) -> int:
        """Images that are held at once: whole batches, 50 MB or one batch."""
        batch, image = self.setting.batch, 3 * self.work.backbone.image_size**2
        return batch * max(1, min(PIECE, PIECE_BYTES // image) // batch)

    def _made(
        self, k: int, size: int, found: Iterator[Sample | Skipped], tick: Callable[[int], None]
    ) -> dict[str, tuple[list[str], Features, list[Skipped]]]:
        """{technique: (names, features, skipped)} of chunk k, which has so many images."""
        wanted = [name for name in self.writers if k in self.missing[name]]
        rows = {name: Filled(size) for name in wanted}
        names: list[str] = []
        skipped: list[Skipped] = []
        while piece := list(itertools.islice(found, self.piece)):
            samples, gone = parted(piece)
            skipped += gone
            names += [sample.source for sample in samples]
            given = dataclasses.replace(self.first, samples=tuple(samples))
            x0 = encode_cached(self.work.backbone, samples, self.cache) if samples else None
            for name in wanted:
                if samples:
                    rows[name].add(self._one(name, given, x0))
                tick(len(piece))
        return {name: (names, rows[name].features, skipped) for name in wanted}

    def _one(self, name: str, samples: SampleSet, x0: Tensor | None) -> Features:
        """Raises OutOfMemoryError at batches of one; what a technique raises becomes a sentence with its name."""
        try:
            return halving(
                lambda batch: features_of(self.work, name, samples, batch, x0),
                self.setting.batch,
                name,
                "use --precision fast or a smaller --image-size",
            )
        except GateError:
            raise
        except Exception as error:
            raise PluginError(
                f"{name} failed ({type(error).__name__}: {error}). Run: gate check {name}"
            ) from error


class Filled:
    """Features of up to `size` images, filled from the front: joined at the end, they would be there twice."""

    def __init__(self, size: int) -> None:
        self.size, self.n = size, 0
        self._whole: Features = {}

    def add(self, features: Features) -> None:
        """features: {layer: (n, ...)}, of the next images."""
        n = len(next(iter(features.values())))
        for layer, value in features.items():
            if layer not in self._whole:
                self._whole[layer] = value.new_empty((self.size, *value.shape[1:]))
            self._whole[layer][self.n : self.n + n] = value
        self.n += n

    @property
    def features(self) -> Features:
        """{layer: (n, ...)} of the images that were added; nothing where none was."""
        return {layer: value[: self.n] for layer, value in self._whole.items()} if self.n else {}
