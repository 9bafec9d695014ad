"""A store is read again, all of it: every checksum, every image counted once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gate.errors import DamagedError, UsageError
from gate.extraction.layouts import make_layout
from gate.extraction.manifest import MANIFEST, Manifest, listing_digest, read_manifest
from gate.extraction.shard import SHARDS, DamagedShardError, Facts, Layout
from gate.extraction.store import read_projection

Progress = Callable[[str, int, int], None]


def stores_in(folder: Path) -> list[Path]:
    """The folder itself where it is a store; else the stores right below it, by name."""
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return [folder]
    return sorted(file.parent for file in folder.glob(f"*/{MANIFEST}")) or [folder]


def verify_store(folder: str | os.PathLike[str], progress: Progress | None = None) -> list[str]:
    """What is wrong with a store, or with the stores right below a folder; a sentence each, with its cure.

    progress: called with (file, shards done, shards). Raises UsageError where there is no store.
    """
    problems = []
    for store in stores_in(Path(folder).expanduser()):
        try:
            manifest = read_manifest(store)
        except DamagedError as error:
            problems.append(str(error))
        else:
            problems += _verify(store, manifest, progress or (lambda *_: None))
    return problems


def _verify(folder: Path, manifest: Manifest, progress: Progress) -> list[str]:
    layout, problems, names = make_layout(manifest.layout), [], []
    whole = manifest.state == "finished"
    missing = 0
    for k in range(manifest.count):
        try:
            facts = _sound(folder, manifest, layout, k)
            names += [*facts.names, *(name for name, _ in facts.skipped)]
        except FileNotFoundError:
            missing += 1
            if whole:
                problems.append(
                    f"{folder / layout.file(k)} is missing; repeat the command: {manifest.repeat}"
                )
        except DamagedShardError as error:
            problems.append(str(DamagedShardError(error.file, error.what, manifest.repeat)))
        except OSError as error:
            problems.append(f"{folder / layout.file(k)} cannot be read ({error.strerror}).")
        progress(layout.file(k), k + 1, manifest.count)
    if not whole:
        done = f"{manifest.count - missing} of {manifest.count} shards are there"
        problems.append(f"{folder} was interrupted, {done}; finish it with: {manifest.repeat}")
    if not problems and (len(names), listing_digest(sorted(names))) != (manifest.images, manifest.listing):
        problems.append(
            f"{folder} has {len(names)} images, not the {manifest.images} that it was made of; extract anew."
        )
    try:
        read_projection(folder, manifest)
    except DamagedError as error:
        problems.append(str(error))
    return [*problems, *_strays(folder, manifest, layout)]


def _sound(folder: Path, manifest: Manifest, layout: Layout, k: int) -> Facts:
    """What shard k says of itself. Raises FileNotFoundError, DamagedShardError where the disk holds something else."""
    file = folder / layout.file(k)
    facts = layout.facts(folder, k)
    if facts.mark != manifest.mark or facts.shard != k:
        raise DamagedShardError(file, "is not of this store")
    if facts.layers and manifest.layers and facts.layers != manifest.layers:
        raise DamagedShardError(file, "has other layers than the store")
    if layout.seal(folder, facts) != facts.seal:
        raise DamagedShardError(file, "was changed after gate wrote it")
    if manifest.shards:
        entry = manifest.shards[k]
        if (facts.seal, len(facts.names), file.stat().st_size) != (entry.seal, entry.rows, entry.bytes):
            raise DamagedShardError(file, "is not the one that the index names")
    return facts


def _strays(folder: Path, manifest: Manifest, layout: Layout) -> list[str]:
    """Files among the shards that are none."""
    known = {Path(layout.file(k)).name for k in range(manifest.count)}
    strays = sorted(file for file in folder.glob(f"{SHARDS}/*.{layout.suffix}") if file.name not in known)
    return [f"{file} is no shard of this store; delete it." for file in strays]


def no_single_store(folder: Path) -> UsageError:
    """The error for a folder that is no store, naming the stores below it."""
    below = [store for store in stores_in(folder) if store != folder]
    if not below:
        return UsageError(
            f"{folder} holds no {MANIFEST}, so it is no store of features; gate extract makes one."
        )
    if len(below) == 1:
        return UsageError(f"{folder} holds a store; load {str(below[0])!r}.")
    listed = ", ".join(repr(str(store)) for store in below)
    return UsageError(f"{folder} holds {len(below)} stores; load one of {listed}.")
