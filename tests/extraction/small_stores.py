"""Small stores that several tests write: features follow from the names, so that any part can be compared."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gate.extraction.store import StoreWriter

ASKED = {
    "technique": "freeu[b1=1.2]",
    "layers": ["up1", "up2.resnet0"],
    "timestep": 50,
    "backbone": {"name": "tiny"},
}
COMMAND = "gate extract --technique freeu --images photos --output store"
LAYOUTS = ("safetensors", "npy", "npy[layers=apart,names=file]", "webdataset")
UNREADABLE = "cannot be decoded"


def listing(n: int) -> list[str]:
    """n names in two folders, the same base names in both; sorted."""
    return sorted(f"{'ab'[i % 2]}/{i // 2:05d}.png" for i in range(n))


def features(
    names: Sequence[str], dtype: torch.dtype = torch.float32, *, maps_only: bool = False
) -> dict[str, Tensor]:
    """Of these images, a number of its own in each place: maps (n, 3, 4, 2), and vectors (n, 5) or smaller maps."""
    seeds = torch.tensor([zlib.crc32(name.encode()) % 1000 for name in names]).reshape(-1, 1)
    maps = (seeds + torch.arange(24) / 24).reshape(-1, 3, 4, 2).to(dtype)
    if maps_only:
        return {"up1": maps, "up0": maps[:, :2, ::2, ::2]}
    return {"up1": maps, "up2.resnet0": (-seeds + torch.arange(5) / 5).to(dtype)}


def begin(
    folder: Path, names: Sequence[str], per_shard: int = 4, layout: str = "safetensors", **asked: object
) -> StoreWriter:
    return StoreWriter.begin(folder, {**ASKED, **asked}, names, per_shard, COMMAND, layout=layout)


def write_shard(
    writer: StoreWriter,
    k: int,
    dtype: torch.dtype = torch.float32,
    bad: Sequence[str] = (),
    *,
    maps_only: bool = False,
) -> None:
    """Shard k, without the images of `bad`."""
    chunk = writer.listing[writer.rows(k)]
    names = [name for name in chunk if name not in bad]
    made = features(names, dtype, maps_only=maps_only)
    writer.write(k, names, made, [(name, UNREADABLE) for name in chunk if name in bad])


def make_store(
    folder: Path,
    n: int = 10,
    per_shard: int = 4,
    layout: str = "safetensors",
    dtype: torch.dtype = torch.float32,
    bad: Sequence[str] = (),
) -> Path:
    """A finished store."""
    with begin(folder, listing(n), per_shard, layout) as writer:
        for k in writer.missing():
            write_shard(writer, k, dtype, bad, maps_only=layout.startswith("npy") and "apart" not in layout)
        writer.finish()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def forked(work: Callable[[], object]) -> int:
    """Run in a fork; its exit status, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
