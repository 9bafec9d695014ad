"""A store is written: shards in any order, by any number of processes, whole or not at all, and then the index.

    STORE/store.json                what was asked; once finished, the index of shards
    STORE/shards/00000.safetensors  the features of images [0, per_shard) of the listing, less unreadable ones
    STORE/projection.safetensors    what was fitted to project features, if anything

A writer that is killed at any moment leaves whole shards; the next one with the same request makes what is missing.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gate.errors import ConfigurationError, DamagedError, UsageError
from gate.extraction.layouts import make_layout
from gate.extraction.manifest import (
    MANIFEST,
    Entry,
    Layer,
    Manifest,
    Skipped,
    differences,
    listing_digest,
    read_manifest,
    write_manifest,
)
from gate.extraction.output import hold, keeping, let_go, make_room
from gate.extraction.shard import SHARDS, DamagedShardError, Facts, Features, layers_of
from gate.names import harmless
from gate.runs.directory import plain, read_arrays, write_arrays
from gate.runs.seal import SEAL
from gate.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROJECTION = "projection.safetensors"


class StoreWriter:
    """Writes a store. Make one with `begin`; `write` may be called in forks of the process, each shard once.

    folder, per_shard, listing: as asked; a store that was begun keeps its own `per_shard`. finished: whether there is
    nothing to do. remarks: what was found and is made anew, a sentence each.
    """

    def __init__(self, folder: Path, manifest: Manifest, listing: Sequence[str], lock: int | None) -> None:
        self.folder, self.manifest, self.listing = folder, manifest, tuple(listing)
        self.layout = make_layout(manifest.layout)
        self.per_shard = manifest.per_shard
        self.remarks: list[str] = []
        self.finished = manifest.state == "finished"
        self._lock = lock
        self._there: dict[int, tuple[Entry, tuple[tuple[str, str], ...]]] = {}
        self._layers: dict[str, Layer] = {}

    @classmethod
    def begin(
        cls,
        folder: str | os.PathLike[str],
        asked: Mapping[str, Any],
        listing: Sequence[str],
        per_shard: int,
        command: str,
        *,
        layout: str = "safetensors",
    ) -> StoreWriter:
        """A new store, or the one that was begun with the same request.

        asked: everything that decides the numbers, as JSON. listing: the names of all images, sorted, each once:
        relative paths with forward slashes. per_shard: images a shard, at least 1. command: what the user would type
        to go on. layout: see `gate.extraction.layouts.make_layout`.

        Raises UsageError where the folder holds something else, or a store of another request; ConfigurationError
        where it cannot be written, or another process writes to it; DamagedError where store.json is damaged.
        """
        _check_listing(listing, per_shard)
        wanted = Manifest(
            gate_version=__version__,
            state="begun",
            command=command,
            layout=make_layout(layout).name,
            images=len(listing),
            per_shard=per_shard,
            listing=listing_digest(listing),
            asked=plain(asked),
        )
        make_layout(layout).fits(listing)
        root = Path(folder).expanduser()
        with keeping(root, command):
            make_room(root)
            lock = hold(root)
            try:
                there = _same(root, wanted) if (root / MANIFEST).is_file() else wanted
                (root / SHARDS).mkdir(exist_ok=True)
                writer = cls(root, there, listing, lock)
                for file in writer.layout.leftovers(root):
                    file.unlink(missing_ok=True)
                if not (root / MANIFEST).is_file():
                    write_manifest(root, there)
                writer.finished = writer.finished and not writer.missing()
            except BaseException:
                let_go(lock)
                raise
        return writer

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}  # whoever began the store holds it

    def close(self) -> None:
        """Let others write to the store."""
        let_go(self._lock)
        self._lock = None

    def rows(self, k: int) -> slice:
        """The images of shard k, as a slice of the listing."""
        return slice(k * self.per_shard, min((k + 1) * self.per_shard, len(self.listing)))

    def missing(self) -> list[int]:
        """Shards that are not there, whoever wrote the others. One that is damaged counts as missing, with a remark.

        Raises DamagedError where a shard was made with another request.
        """
        lacking = []
        for k in range(self.manifest.count):
            if k not in self._there and not self._find(k):
                lacking.append(k)
        return lacking

    def write(
        self, k: int, names: Sequence[str], features: Features, skipped: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Write shard k, whole or not at all.

        names: the images of the rows, in the listing's order. features: {layer: (n, ...)}, on any device; nothing
        where n = 0. skipped: (name, reason) of the chunk's other images. Raises ValueError where the two are not
        exactly the images of the chunk or a layer has not n rows, ConfigurationError where other shards have other
        layers, or the disk takes no more.
        """
        n, chunk = len(names), self.listing[self.rows(k)]
        left_out = {name for name, _ in skipped}
        if [*names] != [name for name in chunk if name not in left_out] or not left_out <= {*chunk}:
            raise ValueError(f"shard {k} needs each image of rows({k}) once, in `names` or in `skipped`")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in features.items()} if n else {}
        if (n and not tensors) or any(len(tensor) != n for tensor in tensors.values()):
            raise ValueError(f"shard {k} has {n} names, and its layers must have as many rows")
        said = tuple((name, str(plain(reason))) for name, reason in skipped)
        facts = Facts(k, self.manifest.mark, tuple(names), said, layers_of(tensors))
        self._same_layers(facts)
        with keeping(self.folder, self.manifest.command):
            seal = self.layout.write(self.folder, facts, tensors, self.rows(k).start)
        self._count(facts, seal)

    def write_projection(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep what was fitted to project features, before the first shard is written."""
        with keeping(self.folder, self.manifest.command):
            write_arrays(self.folder / PROJECTION, arrays, mark=self.manifest.mark)

    def projection(self) -> dict[str, NDArray[Any]] | None:
        """What `write_projection` kept, or None. Raises DamagedError."""
        found = read_projection(self.folder, self.manifest)
        return found[0] if found else None

    def finish(self) -> Manifest:
        """Write the index, which makes the store one that can be read.

        Raises ConfigurationError where shards are missing, have other layers than the rest, or no image has a row.
        """
        if lacking := self.missing():
            listed = ", ".join(str(k) for k in lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            raise ConfigurationError(
                f"{len(lacking)} of {self.manifest.count} shards of {self.folder} are missing ({listed}); "
                f"repeat the command: {self.manifest.repeat}"
            )
        there = [self._there[k] for k in range(self.manifest.count)]
        skipped = [
            Skipped(file=str(plain(name)), reason=reason) for _, pairs in there for name, reason in pairs
        ]
        if not any(entry.rows for entry, _ in there):
            first = f"{harmless(skipped[0].file)}: {harmless(skipped[0].reason)}"
            raise ConfigurationError(f"None of {len(skipped)} images could be used; the first, {first}.")
        found = read_projection(self.folder, self.manifest)
        done = self.manifest.model_copy(
            update={
                "state": "finished",
                "layers": self._layers,
                "shards": [entry for entry, _ in there],
                "skipped": skipped,
                "projection": found[1] if found else None,
            }
        )
        with keeping(self.folder, self.manifest.command):
            write_manifest(self.folder, done)
        self.manifest, self.finished = done, True
        self.close()
        return done

    def _find(self, k: int) -> bool:
        """Whether shard k is there and is this store's; its header alone is read."""
        try:
            facts = self.layout.facts(self.folder, k)
        except FileNotFoundError:
            return False
        except DamagedError:
            self.remarks.append(f"{self.layout.file(k)} was damaged, and is extracted anew")
            return False
        if facts.mark != self.manifest.mark or facts.shard != k:
            raise DamagedShardError(self.folder / self.layout.file(k), "is not of this store")
        self._same_layers(facts)
        self._count(facts, facts.seal)
        return True

    def _count(self, facts: Facts, seal: str) -> None:
        file = self.layout.file(facts.shard)
        size = (self.folder / file).stat().st_size
        entry = Entry(file=file, rows=len(facts.names), bytes=size, seal=seal)
        self._there[facts.shard] = entry, facts.skipped
        self._layers = self._layers or facts.layers

    def _same_layers(self, facts: Facts) -> None:
        if (
            facts.layers
            and self._layers
            and ([*facts.layers], facts.layers) != ([*self._layers], self._layers)
        ):
            told = "; ".join(differences(_words(self._layers), _words(facts.layers))) or "their order"
            raise ConfigurationError(
                f"Shard {facts.shard} of {self.folder} differs from those before it in its layers: {told}; "
                "extract into another folder."
            )


def read_projection(folder: Path, manifest: Manifest) -> tuple[dict[str, NDArray[Any]], str] | None:
    """The fitted projection of a store and its seal, or None where there is none. Raises DamagedError."""
    file = folder / PROJECTION
    if not file.is_file():
        if manifest.projection is not None:
            raise DamagedError(f"{file} is missing; put it back, or extract into another folder.")
        return None
    try:
        arrays, facts = read_arrays(file)
    except DamagedError as error:
        raise DamagedError(f"{file} is damaged; put it back, or extract into another folder.") from error
    if facts.get("mark") != manifest.mark or manifest.projection not in (None, facts.get(SEAL)):
        raise DamagedError(f"{file} is not of this store; put its own back, or extract into another folder.")
    return arrays, facts[SEAL]


def _check_listing(listing: Sequence[str], per_shard: int) -> None:
    if not listing or per_shard < 1:
        raise ValueError("a store needs an image at least, and an image a shard")
    if any(a >= b for a, b in itertools.pairwise(listing)):
        raise ValueError("the listing must be sorted, and name each image once")
    for name in listing:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"{name!r} is no relative path below the folder of images")


def _same(folder: Path, wanted: Manifest) -> Manifest:
    """What was begun there. Raises UsageError where it was asked for something else."""
    there = read_manifest(folder)
    fields = {"asked", "layout"}
    told = differences(there.model_dump(include=fields), plain(wanted.model_dump(include=fields)))
    told = [text.removeprefix("asked.") for text in told]
    if (there.images, there.listing) != (wanted.images, wanted.listing):
        counts = f"{there.images} there, {wanted.images} now"
        told.append(f"the images ({counts})" if there.images != wanted.images else "the names of the images")
    if told:
        more = f", and {len(told) - 3} more" if len(told) > 3 else ""
        raise UsageError(
            f"{folder} holds a store that differs in {', '.join(told[:3])}{more}; choose another --output, or repeat "
            f"the command that began it: {there.repeat}"
        )
    return there


def _words(layers: Mapping[str, Layer]) -> dict[str, str]:
    return {name: f"{'x'.join(str(s) for s in of.shape)} {of.dtype}" for name, of in layers.items()}
