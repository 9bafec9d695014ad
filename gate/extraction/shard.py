"""A shard: the features of a chunk of images in one file that says what it holds, for whom, and its checksum.

A `Layout` is a way to write shards. All have one interface, so that resume, verification and the account of skipped
images are the same for each; `gate.extraction.layouts` holds the layouts that are made for others' programs.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gate.errors import DamagedError
from gate.extraction.manifest import Layer
from gate.runs.directory import disk_error, one_move
from gate.runs.leftovers import leftovers
from gate.runs.seal import SEAL, digest

if TYPE_CHECKING:
    from torch import Tensor

SHARDS = "shards"
Features = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Facts:
    """What a shard says of itself.

    names: the image of each row. skipped: (name, reason) of the chunk's images that have no row. mark: of what the
    whole store was asked (`Manifest.mark`). layers: one image's shape and dtype; empty where every image was skipped.
    extra: what the layout adds. seal: the checksum over all this and the features; "" before it is known.
    """

    shard: int
    mark: str
    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    layers: dict[str, Layer] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    seal: str = ""

    def said(self) -> dict[str, Any]:
        """As JSON's own types, without the seal."""
        return {
            "shard": self.shard,
            "mark": self.mark,
            "names": list(self.names),
            "skipped": [list(pair) for pair in self.skipped],
            "layers": {
                name: {"shape": list(of.shape), "dtype": of.dtype} for name, of in self.layers.items()
            },
            **({"extra": self.extra} if self.extra else {}),
        }

    def text(self, seal: str) -> str:
        """As one line of JSON with a seal."""
        return json.dumps({**self.said(), SEAL: seal})

    def sealed_over(self, content: Iterable[Any]) -> str:
        """The checksum of these facts and of the content, a sequence of buffers."""
        found = hashlib.blake2b(digest(self.said()).encode(), digest_size=16)
        for piece in content:
            found.update(piece)
        return found.hexdigest()


def read_facts(text: str, file: Path) -> Facts:
    """What a shard says of itself. Raises DamagedError where the text is not one that `Facts.text` writes."""
    try:
        raw = json.loads(text)
        facts = Facts(
            shard=int(raw["shard"]),
            mark=str(raw["mark"]),
            names=tuple(raw["names"]),
            skipped=tuple((name, reason) for name, reason in raw["skipped"]),
            layers={name: Layer.model_validate(of) for name, of in raw["layers"].items()},
            extra=dict(raw.get("extra", {})),
            seal=str(raw[SEAL]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedShardError(file) from error
    if facts.text(facts.seal) != text:
        raise DamagedShardError(file)
    return facts


class DamagedShardError(DamagedError):
    """A shard cannot be used: `file` as it is named, `what` is the matter with it."""

    def __init__(self, file: Path, what: str = "is damaged", command: str = "") -> None:
        repeat = f"which extracts it anew: {command}" if command else "which store.json holds"
        super().__init__(f"{file} {what}; delete it and repeat the command, {repeat}")
        self.file, self.what, self.command = file, what, command

    def __reduce__(self) -> tuple[Any, ...]:  # it may come from a worker
        return type(self), (self.file, self.what, self.command)


def layers_of(features: Features) -> dict[str, Layer]:
    """One image's shape and dtype, by layer, in the caller's order. features: {layer: (n, ...)}."""
    return {
        name: Layer(shape=tuple(of.shape[1:]), dtype=str(of.dtype).removeprefix("torch."))
        for name, of in features.items()
    }


class Layout(ABC):
    """A way to write shards.

    name: as `--layout` takes it, with its settings. suffix: of the file whose presence makes a shard whole; it is
    written last, in one move.
    """

    name: str
    suffix: str

    def file(self, k: int) -> str:
        """The file that makes shard k whole, relative to the store."""
        return f"{SHARDS}/{k:05d}.{self.suffix}"

    def fits(self, listing: Sequence[str]) -> None:  # noqa: B027  most layouts fit any
        """Raises UsageError where two images of a listing would be written to one place."""

    def holds(self, dtype: str) -> None:  # noqa: B027  the first holds any
        """Raises UsageError where the layout cannot hold features of a dtype, by torch's word for it."""

    def leftovers(self, folder: Path) -> Iterator[Path]:
        """Temporary files that a killed run left."""
        yield from leftovers(folder, folder / SHARDS)

    @abstractmethod
    def write(self, folder: Path, facts: Facts, features: Features, start: int) -> str:
        """Write shard `facts.shard`, whole or not at all; returns its seal.

        features: {layer: (n, ...)}, contiguous, on the CPU, n = len(facts.names). start: the index in the listing of
        the chunk's first image. Raises UsageError where the layout cannot hold such features, OSError.
        """

    @abstractmethod
    def facts(self, folder: Path, k: int) -> Facts:
        """What shard k says of itself; its features are not read. Raises DamagedError, FileNotFoundError."""

    @abstractmethod
    def seal(self, folder: Path, facts: Facts) -> str:
        """The checksum of what the disk holds of a shard now; it is sound where that is `facts.seal`.

        Raises DamagedError where something of it is missing.
        """


class Safetensors(Layout):
    """One safetensors file a shard, a tensor (n, ...) a layer; what it says of itself is its metadata `gate`."""

    name = suffix = "safetensors"

    def write(self, folder: Path, facts: Facts, features: Features, start: int) -> str:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        seal = facts.sealed_over(raw_bytes(tensor) for tensor in features.values())
        with one_move(folder / self.file(facts.shard)) as temporary:
            try:
                save_file(_apart(features), temporary, {"gate": facts.text(seal)})
            except SafetensorError as error:
                raise disk_error(error) from error
            temporary.chmod(0o644)  # as every other file of the store; safetensors makes it private
        return seal

    def facts(self, folder: Path, k: int) -> Facts:
        file = folder / self.file(k)
        with open_shard(file) as opened:
            return read_facts((opened.metadata() or {}).get("gate", ""), file)

    def seal(self, folder: Path, facts: Facts) -> str:
        file = folder / self.file(facts.shard)
        with open_shard(file) as opened:
            if set(opened.keys()) != set(facts.layers):
                raise DamagedShardError(file, "does not hold the layers that it names")
            tensors = {name: opened.get_tensor(name) for name in facts.layers}
            if tensors and layers_of(tensors) != facts.layers:
                raise DamagedShardError(file, "does not hold the shapes that it names")
            return facts.sealed_over(raw_bytes(tensor) for tensor in tensors.values())


def open_shard(file: Path) -> Any:
    """A safetensors file, mapped, as `safetensors.safe_open` gives it. Raises DamagedError, FileNotFoundError."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedShardError(file) from error


def raw_bytes(tensor: Tensor) -> Any:
    """The bytes of a contiguous tensor on the CPU, of any dtype, without a copy."""
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _apart(features: Features) -> dict[str, Tensor]:
    """Tensors that share no memory, which safetensors asks for: a second view of the same is copied."""
    seen: set[int] = set()
    result = {}
    for name, tensor in features.items():
        twice = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor.clone() if twice else tensor
    return result
