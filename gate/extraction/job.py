"""An extraction: images through techniques into stores, chunk by chunk; what is there already is not made again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gate.errors import ConfigurationError, GateError, OutOfMemoryError, PluginError, UsageError
from gate.extraction.config import ExtractConfig, make_config
from gate.sample import SampleSet, reasons

if TYPE_CHECKING:
    from torch import Tensor

    from gate.extraction.engine import Features, Work
    from gate.extraction.latents import LatentCache
    from gate.extraction.plan import Setting
    from gate.extraction.request import Asked, Images
    from gate.extraction.store import StoreWriter
    from gate.extraction.tune import Choice

SHARD_BYTES = 64 << 20
LEAST_SHARDS = 4  # a kill then costs a quarter of the work at most, and every process has some
Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an extraction; whole shards are kept."""

    def __init__(self, command: str) -> None:
        self.told = f"whole shards are kept; go on with: {command}"
        super().__init__(f"interrupted; {self.told}")


@dataclass(frozen=True)
class Extraction:
    """What was extracted. stores: a directory per technique, the output itself where there is one. images: rows in
    each; skipped: (file, reason). rate: images and techniques per second, of what was made now."""

    output: Path
    stores: Mapping[str, Path]
    images: int
    skipped: tuple[tuple[str, str], ...]
    rate: float

    def features(self, technique: str = "", **options: Any) -> Any:
        """`gate.load_features` of a technique's store."""
        from gate.extraction.dataset import load_features

        name = technique or next(iter(self.stores))
        return load_features(self.stores[name], **options)


def extract(
    config: ExtractConfig | None = None,
    *,
    progress: Progress | None = None,
    log: Log | None = None,
    **settings: Any,
) -> Extraction:
    """Extract features into stores. Give an ExtractConfig, or its fields as keywords.

    Raises UsageError, ConfigurationError, MissingWeightsError, IncomparableError (a run's weights are others)
    before anything is computed; `Interrupted` on Ctrl-C. The same request goes on where an earlier one stopped.
    """
    progress, log = progress or (lambda *_: None), log or (lambda _: None)
    chosen = make_config({**(config.model_dump(exclude_unset=True) if config else {}), **settings})
    if chosen.output is None:
        raise UsageError("Say where the features go: --output STORE.")
    from gate.extraction.request import prepare

    asked = prepare(chosen, log)
    try:
        return _extract(asked, Path(chosen.output).expanduser(), progress, log)
    except KeyboardInterrupt as stop:
        raise Interrupted(asked.command) from stop


def explain(config: ExtractConfig | None = None, *, log: Log | None = None, **settings: Any) -> str:
    """How an extraction would be run and why, what it costs and how large it gets; nothing is written."""
    from gate.extraction.request import prepare

    chosen = make_config({**(config.model_dump(exclude_unset=True) if config else {}), **settings})
    asked = prepare(chosen, log or (lambda _: None))
    from gate.extraction.words import explanation

    planned = _plan(asked, log or (lambda _: None))
    return explanation(asked, planned.work, planned.choice, planned.one, planned.size)


@dataclass(frozen=True, eq=False)
class _Planned:
    """work: with its projections fitted. choice: how it is run. one: an image's features. size: their bytes. per_shard:
    images."""

    work: Work
    choice: Choice
    one: Features
    size: int
    per_shard: int


def _plan(asked: Asked, log: Log) -> _Planned:
    from gate.extraction.engine import features_of
    from gate.extraction.plan import usual_setting
    from gate.extraction.tune import Choice, choose

    config, work, images = asked.config, asked.work, asked.images
    usual = usual_setting(work.backbone, config.precision)
    if config.batch_size != "auto":
        usual = usual.with_(batch=config.batch_size)
    if config.workers != "auto":
        cores = usual.threads * usual.processes
        usual = usual.with_(processes=config.workers, threads=max(1, cores // config.workers))
    if work.epilogue.project:
        learned = {
            name: features_of(work, name, asked.first, usual.batch, raw=True) for name in work.techniques
        }
        states = {name: work.epilogue.fit(features, work.maps) for name, features in learned.items()}
        work = dataclasses.replace(work, states=states)
    one = features_of(work, next(iter(work.techniques)), asked.first[:1], 1)
    if config.batch_size != "auto" or config.workers != "auto":
        choice = Choice(usual, "as asked for")
    else:
        count = len(images) * len(work.techniques)
        choice = choose(
            work,
            asked.first,
            usual,
            images=count,
            precision=config.precision,
            compile=config.compile,
            memory=asked.memory,
            log=log,
        )
    size = sum(value.nbytes for value in one.values())
    per_shard = config.per_shard if config.per_shard != "auto" else _per_shard(size, len(images))
    return _Planned(work, choice, one, size, per_shard)


def _per_shard(size: int, images: int) -> int:
    return max(1, min(SHARD_BYTES // max(size, 1), -(-images // LEAST_SHARDS), 4096))


def _extract(asked: Asked, output: Path, progress: Progress, log: Log) -> Extraction:
    from gate.extraction.engine import over_processes, running
    from gate.extraction.store import StoreWriter
    from gate.extraction.words import summary

    planned = _plan(asked, log)
    work, setting = planned.work, planned.choice.setting
    for line in summary(asked, work, planned.choice):
        log(line)
    names = list(work.techniques)
    folders = {name: output / folder_of(name) if len(names) > 1 else output for name in names}
    _check_room(output, planned, asked)
    with contextlib.ExitStack() as opened:
        writers = {
            name: opened.enter_context(
                StoreWriter.begin(
                    folders[name],
                    asked.facts(name, work, setting),
                    asked.images.keys,
                    planned.per_shard,
                    asked.command,
                    layout=asked.config.layout,
                )
            )
            for name in names
        }
        per_shard = {w.per_shard for w in writers.values()}
        if len(per_shard) > 1:
            raise ConfigurationError(f"The stores in {output} were begun apart; extract into another folder.")
        for name, writer in writers.items():
            for remark in writer.remarks:
                log(remark)
            if work.states.get(name):
                writer.write_projection({k: v.numpy() for k, v in work.states[name].items()})
        missing = {name: set(writer.missing()) for name, writer in writers.items()}
        todo = sorted(set().union(*missing.values()))
        rows = {k: len(range(*writers[names[0]].rows(k).indices(len(asked.images)))) for k in todo}
        total = len(asked.images) * len(names)
        done = total - sum(rows[k] for k in todo for name in names if k in missing[name])
        count = _Count(progress, done, total)
        job = _Chunks(work, writers, missing, asked.images, setting, asked.first, asked.cache)
        began = time.perf_counter()
        with running(work.backbone, setting):
            over_processes(todo, job, setting, count)
        spent = time.perf_counter() - began
        made = count.done - done
        manifests = [writer.finish() for writer in writers.values()]
    skipped = tuple((s.file, s.reason) for s in manifests[0].skipped)
    if skipped:
        log(f"{len(skipped)} of {len(asked.images)} images are left out ({reasons(skipped)})")
    kept = sum(entry.rows for entry in manifests[0].shards)
    return Extraction(output, folders, kept, skipped, made / spent if made else 0.0)


class _Count:
    """progress(words, done, total), with the images per second."""

    def __init__(self, progress: Progress, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total
        self.began, self.before = time.perf_counter(), done

    def __call__(self, rows: int) -> None:
        self.done += rows
        rate = (self.done - self.before) / max(time.perf_counter() - self.began, 1e-9)
        self.progress(f"{rate:.1f} images/s", self.done, self.total)


@dataclass(frozen=True, eq=False)
class _Chunks:
    """The work of one process: chunks are read ahead, go through every technique that lacks them, and are written
    behind."""

    work: Work
    writers: Mapping[str, StoreWriter]
    missing: Mapping[str, set[int]]
    images: Images
    setting: Setting
    first: SampleSet
    cache: LatentCache | None

    def __call__(self, chunks: Iterator[int], tick: Callable[[int], None]) -> None:
        from gate.extraction.behind import AsyncWriter
        from gate.extraction.engine import ahead

        first = next(iter(self.writers.values()))
        with contextlib.ExitStack() as opened:
            behind = {n: opened.enter_context(AsyncWriter(w)) for n, w in self.writers.items()}
            for k, (samples, skipped) in ahead(chunks, lambda k: self.images.read(first.rows(k))):
                for name, features in self._techniques(
                    k, dataclasses.replace(self.first, samples=tuple(samples))
                ):
                    behind[name].put(k, [sample.source for sample in samples], features, skipped)
                    tick(len(samples) + len(skipped))

    def _techniques(self, k: int, samples: SampleSet) -> Iterator[tuple[str, Features]]:
        from gate.extraction.latents import encode_cached

        wanted = [name for name in self.writers if k in self.missing[name]]
        x0: Tensor | None = None
        if len(samples):
            x0 = encode_cached(self.work.backbone, samples.samples, self.cache)
        for name in wanted:
            yield name, self._one(name, samples, x0) if len(samples) else {}

    def _one(self, name: str, samples: SampleSet, x0: Tensor | None) -> Features:
        """Raises OutOfMemoryError at batches of one; what a technique raises becomes a sentence with its name."""
        from gate.extraction.engine import features_of
        from gate.machine import is_out_of_memory

        batch = self.setting.batch
        while True:
            try:
                return features_of(self.work, name, samples, batch, x0)
            except GateError:
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise PluginError(
                        f"{name} failed ({type(error).__name__}: {error}). Run: gate check {name}"
                    ) from error
                if batch == 1:
                    raise OutOfMemoryError(
                        f"{name} does not fit into memory even at batch size 1; use --precision fast or a smaller "
                        "--image-size."
                    ) from error
                batch //= 2


def folder_of(technique: str) -> str:
    """A technique's folder in an output of several: its name, where that is a plain file name."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,99}", technique):
        return technique
    safe = re.sub(r"[^A-Za-z0-9+._-]+", "_", technique)[:60].strip("_.") or "technique"
    return f"{safe}-{hashlib.blake2b(technique.encode(), digest_size=4).hexdigest()}"


def _check_room(output: Path, planned: _Planned, asked: Asked) -> None:
    """Refuse what cannot fit before hours of work, not after."""
    there = next((p for p in (output, *output.absolute().parents) if p.exists()), Path("/"))
    needed = planned.size * len(asked.images) * len(planned.work.techniques)
    have = sum(f.stat().st_size for f in output.rglob("*") if f.is_file()) if output.is_dir() else 0
    free = shutil.disk_usage(there).free
    if needed - have > free:
        raise ConfigurationError(
            f"{needed / 1e9:.1f} GB of features do not fit into the {free / 1e9:.1f} GB that are free at {there}; "
            "use --pool, --project, --save-dtype float16 or fewer layers."
        )
