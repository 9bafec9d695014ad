"""A finished store as a torch Dataset: opened by its headers, mapped, read where it is asked for."""

from __future__ import annotations

import bisect
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gate.errors import DamagedError, UsageError, unknown_name
from gate.extraction.layouts import make_layout
from gate.extraction.manifest import MANIFEST, Manifest, read_manifest
from gate.extraction.shard import DamagedShardError, Safetensors, open_shard
from gate.extraction.store import read_projection
from gate.extraction.verify import no_single_store

OPEN = 16  # shards that a process holds mapped; each page of them that was read counts as its memory


def load_features(
    store: str | os.PathLike[str],
    layers: str | Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> FeatureStore:
    """The features that `gate extract` wrote. Reads the headers of the shards, not the features.

    layers: which to give; all by default, in the order in which they were asked for. dtype: what they are cast to when
    they are read; as stored by default.

    Raises UsageError where there is no store, several, an unfinished one, one of another layout, or no such layer;
    DamagedError where a shard is missing or is not the one that was written. Checksums are read by
    `gate.extraction.verify.verify_store` alone.
    """
    folder = Path(store).expanduser()
    if not (folder / MANIFEST).is_file():
        raise no_single_store(folder)
    manifest = read_manifest(folder)
    if manifest.state != "finished":
        raise UsageError(f"{folder} was interrupted; finish it with: {manifest.repeat}")
    if not isinstance(make_layout(manifest.layout), Safetensors):
        raise UsageError(
            f"{folder} was written as {manifest.layout}, for other programs; load_features reads what gate extract "
            "writes without --layout."
        )
    wanted = [layers] if isinstance(layers, str) else [*manifest.layers] if layers is None else [*layers]
    for layer in wanted:
        if layer not in manifest.layers:
            raise unknown_name("layer", layer, manifest.layers, listing=str(folder / MANIFEST))
    if not wanted:
        raise UsageError(f"Name a layer at least; {folder} has {', '.join(manifest.layers)}.")
    return FeatureStore(folder, manifest, tuple(wanted), dtype)


class FeatureStore(Dataset[dict[str, Tensor]]):
    """Features of images by index or by file name; made by `load_features`.

    `store[3]`, `store["a/b.png"]`: {layer: (c, h, w)}, or (d,) where they were pooled. `store[3:9]`, `store[[5, 2]]`,
    `store[["a.png", "b.png"]]`: {layer: (n, c, h, w)}. All are copies, which may be written to. `names[i]` is the file
    of row i; images that could not be read have none, and are in `skipped` with the reason.

    layers: those that are given. shapes: of one image, by layer. skipped: {file: reason}. asked: what the store was
    asked for. It can be sent to DataLoader workers, forked or spawned; each process opens the shards that it reads.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, layers: tuple[str, ...], dtype: torch.dtype | None
    ) -> None:
        self.folder, self.manifest, self.layers, self.dtype = folder, manifest, layers, dtype
        self.shapes = {layer: manifest.layers[layer].shape for layer in layers}
        self.skipped = {skip.file: skip.reason for skip in manifest.skipped}
        self.asked = manifest.asked
        self._files = [folder / entry.file for entry in manifest.shards if entry.rows]
        rows = (entry.rows for entry in manifest.shards if entry.rows)
        self._ends = [*itertools.accumulate(rows)]
        self.names = tuple(name for k in range(manifest.count) for name in self._names(k))
        self._places: dict[str, int] | None = None
        self._opened = functools.lru_cache(maxsize=OPEN)(_open)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        """By an index, a file's name, a slice, a sequence of these, a boolean mask. Raises IndexError, UsageError."""
        if isinstance(index, str):
            return self._one(self.index_of(index))
        if isinstance(index, slice):
            return self._many(range(len(self))[index])
        if isinstance(index, SupportsIndex) and getattr(index, "ndim", 0) == 0:
            return self._one(range(len(self))[index])
        return self._many(self._positions(index))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self._one(i) for i in range(len(self)))

    def __repr__(self) -> str:
        layers = ", ".join(f"{layer} {self.shapes[layer]}" for layer in self.layers)
        return f"FeatureStore({str(self.folder)!r}: {len(self)} images, {layers})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opened = functools.lru_cache(maxsize=OPEN)(_open)

    def index_of(self, name: str) -> int:
        """The row of an image, by its path relative to the folder of images. Raises UsageError."""
        if self._places is None:
            self._places = {name: row for row, name in enumerate(self.names)}
        if name in self.skipped:
            raise UsageError(f"{name!r} has no features: it {self.skipped[name]}.")
        if name not in self._places:
            near = [known for known in self.names if Path(known).name == Path(name).name] or self.names
            raise unknown_name("image", name, near[:1000], listing=f"the names of {self.folder}")
        return self._places[name]

    def arrays(self, layer: str) -> Tensor:
        """All rows of a layer, (n, ...), in memory; for scikit-learn: `store.arrays("up1").flatten(1).numpy()`.

        numpy has no bfloat16: load with `dtype=torch.float32` there.
        """
        if layer not in self.layers:
            raise unknown_name("layer", layer, self.layers, listing=str(self.folder / MANIFEST))
        return self._read(range(len(self)), (layer,))[layer]

    @functools.cached_property
    def projection(self) -> dict[str, NDArray[Any]] | None:
        """What was fitted to project the features, or None. Raises DamagedError."""
        found = read_projection(self.folder, self.manifest)
        return found[0] if found else None

    def _names(self, k: int) -> tuple[str, ...]:
        """The images of shard k, from its header. Raises DamagedError where it is missing or another."""
        entry = self.manifest.shards[k]
        file = self.folder / entry.file
        try:
            size, facts = file.stat().st_size, Safetensors().facts(self.folder, k)
        except FileNotFoundError as error:
            raise DamagedError(f"{file} is missing; repeat the command: {self.manifest.repeat}") from error
        if (facts.seal, len(facts.names), size) != (entry.seal, entry.rows, entry.bytes):
            raise DamagedShardError(file, "is not the one that the index names", self.manifest.repeat)
        return facts.names

    def _positions(self, index: Iterable[Any]) -> list[int]:
        given = index.tolist() if isinstance(index, (np.ndarray, Tensor)) else [*index]
        if given and all(isinstance(i, bool) for i in given):
            if len(given) != len(self):
                raise IndexError(f"a mask of {len(given)} for {len(self)} images")
            return [i for i, wanted in enumerate(given) if wanted]
        return [self.index_of(i) if isinstance(i, str) else range(len(self))[i] for i in given]

    def _one(self, position: int) -> dict[str, Tensor]:
        return {layer: rows[0] for layer, rows in self._many((position,)).items()}

    def _many(self, positions: Sequence[int]) -> dict[str, Tensor]:
        return self._read(positions, self.layers)

    def _read(self, positions: Sequence[int], layers: tuple[str, ...]) -> dict[str, Tensor]:
        """Rows copied out of the mapped shards: {layer: (positions, ...)}."""
        n = len(positions)
        result = {layer: torch.empty((n, *self.shapes[layer]), dtype=self._dtype(layer)) for layer in layers}
        homes = [bisect.bisect_right(self._ends, position) for position in positions]
        order = sorted(range(n), key=homes.__getitem__)
        for k, group in itertools.groupby(order, key=homes.__getitem__):
            places = [*group]
            start = self._ends[k - 1] if k else 0
            opened = self._opened(self._files[k])
            for layer, rows in result.items():
                stored = opened.get_tensor(layer)
                for place in places:
                    rows[place] = stored[positions[place] - start]
        return result

    def _dtype(self, layer: str) -> torch.dtype:
        stored: torch.dtype = getattr(torch, self.manifest.layers[layer].dtype)
        return self.dtype or stored


def _open(file: Path) -> Any:
    try:
        return open_shard(file)
    except FileNotFoundError as error:
        raise DamagedShardError(file, "is missing") from error
