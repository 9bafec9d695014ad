"""An extraction: images through techniques into stores, chunk by chunk; what is there already is not made again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gate.errors import ConfigurationError, UsageError
from gate.extraction.config import ExtractConfig, make_config
from gate.sample import reasons

if TYPE_CHECKING:
    from gate.extraction.engine import Features, Work
    from gate.extraction.manifest import Manifest
    from gate.extraction.request import Asked
    from gate.extraction.tune import Choice

SHARD_BYTES = 64 << 20
LEAST_SHARDS = 4  # a kill then costs a quarter of the work at most, and every process has some
TIMED = ("channels_last", "compiled")  # settings that move the last bits of half precision, chosen by timing
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
    from gate.extraction.chunks import Chunks, Count
    from gate.extraction.engine import over_processes, running
    from gate.extraction.store import StoreWriter
    from gate.extraction.words import summary

    names = list(asked.work.techniques)
    folders = {name: output / folder_of(name) if len(names) > 1 else output for name in names}
    if (there := _finished(asked, folders)) is not None:
        log(f"{output} is finished: nothing is left to extract")
        return _told(output, folders, there, 0.0, log)
    planned = _plan(asked, log)
    work, setting = planned.work, planned.choice.setting
    for line in summary(asked, work, planned.choice):
        log(line)
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
        count = Count(progress, done, total)
        job = Chunks(work, writers, missing, asked.images, setting, asked.first, asked.cache)
        began = time.perf_counter()
        with running(work.backbone, setting):
            over_processes(todo, job, setting, count)
        spent = time.perf_counter() - began
        made = count.done - done
        manifests = [writer.finish() for writer in writers.values()]
    return _told(output, folders, manifests, made / spent if made else 0.0, log)


def _finished(asked: Asked, folders: Mapping[str, Path]) -> list[Manifest] | None:
    """The manifests of stores that this request has made already, whole; None where anything is left to do.

    It is found before anything is timed. Raises UsageError where a store there is another request's.
    """
    from gate.extraction.manifest import MANIFEST, read_manifest
    from gate.extraction.plan import usual_setting
    from gate.extraction.store import StoreWriter

    if not all((folder / MANIFEST).is_file() for folder in folders.values()):
        return None
    usual, found = usual_setting(asked.work.backbone, asked.config.precision), []
    for name, folder in folders.items():
        there = read_manifest(folder)
        if there.state != "finished":
            return None
        timed = {key: there.asked[key] for key in TIMED if key in there.asked}  # what the timing chose then
        facts = asked.facts(name, asked.work, usual) | timed
        with StoreWriter.begin(
            folder, facts, asked.images.keys, there.per_shard, asked.command, layout=asked.config.layout
        ) as writer:
            if not writer.finished:
                return None
        found.append(there)
    return found


def _told(
    output: Path, folders: Mapping[str, Path], manifests: Sequence[Manifest], rate: float, log: Log
) -> Extraction:
    """What there is now, with the images that are left out said."""
    first = manifests[0]
    skipped = tuple((s.file, s.reason) for s in first.skipped)
    if skipped:
        log(f"{len(skipped)} of {first.images} images are left out ({reasons(skipped)})")
    return Extraction(output, folders, sum(entry.rows for entry in first.shards), skipped, rate)


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
