"""Layouts for others' programs: `npy`, as generic-diffusion-feature's scripts read it, and `webdataset`.

generic-diffusion-feature (Meng et al. 2024; read at commit e4361a6) saves one .npy per image and layer, or per image:

* `task-pixel.py`, its training script, loads `FEATURE_PATH/FEATURE_ID/train0.npy`, `train1.npy`, ... and `test0.npy`,
  ...: the split's name and the index of the image among the split's sorted files, in one folder, without padding. An
  array is (channels, h, w), of any floating type that numpy has; it is cast to float32, resized bilinearly to the size
  of the masks, and its channels must be `--feature_len`. Its extraction script makes such a file with
  `--aggregate_output`: every layer resized to the largest by nearest neighbour, then concatenated along the channels
  in the order of the forward. That is `npy`, the default; a test split is another store, `npy[split=test]`, whose
  files may be moved beside the first's.
* Per layer, its extraction script writes `LAYER/NAME.npy`, or with `--sample_name_first` `NAME/LAYER.npy`, which its
  figures (`feature_visualization.py`) read; LAYER is its own id, such as `up-level1-upsampler-out`, and NAME
  `train0` as above, or with `--use_original_filename` the image's name without its extension. These are
  `npy[layers=apart]`, `npy[layers=apart,first=sample]` and `names=file`. It keeps one folder of a nested name at most;
  here all are kept, so that no two images meet in one file.

WebDataset reads tar files whose members come in groups of one sample: `KEY.EXTENSION`, where the key goes up to the
first dot of the base name, and the last part of the extension says how to decode (`npy`, `json`). Members between
double underscores are skipped. So a sample is `000000017.json` ({"name": "a/b.png", "index": 17}) and
`000000017.LAYER.npy`; the key is the index in the listing, since names may hold dots. Read it with
`webdataset.WebDataset("STORE/shards/{00000..00156}.tar").decode()`, or with tarfile alone.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from gate.backbones.aliases import peer_name
from gate.errors import UsageError, unknown_name
from gate.extraction.shard import DamagedShardError, Facts, Features, Layout, Safetensors, read_facts
from gate.names import parse_name
from gate.runs.directory import one_move
from gate.runs.seal import digest_bytes, digest_file

if TYPE_CHECKING:
    from torch import Tensor

LAYOUTS = {
    "safetensors": "shards of many images, mapped when they are read: gate.load_features",
    "npy": "a .npy per image, as generic-diffusion-feature's training scripts read it",
    "webdataset": "tar files, for programs that stream",
}
ABOUT = "__gate__"  # webdataset skips members of such a name
_CHOICES = {"layers": ("together", "apart"), "first": ("layer", "sample"), "names": ("split", "file")}


def make_layout(text: str) -> Layout:
    """A layout by its name on the command line: `safetensors`, `npy`, `npy[split=test]`, `npy[layers=apart]`, ...

    Settings of npy: layers=together|apart, first=layer|sample (which folder holds the other), names=split|file, and
    split=WORD. Raises UsageError.
    """
    head, settings = parse_name(text)
    if head not in LAYOUTS:
        raise unknown_name("layout", head, LAYOUTS, listing="docs/stores.md")
    if head == "npy":
        return Npy(**{key: str(value) for key, value in settings.items()})
    if settings:
        raise UsageError(f"The layout {head} has no settings; write --layout {head}.")
    return Safetensors() if head == "safetensors" else WebDataset()


class Npy(Layout):
    """One .npy per image, or per image and layer; a shard's record, a sealed JSON, is written after its files.

    The files lie in the store itself, which is what the peer's scripts take as a feature's folder.
    """

    suffix = "json"

    def __init__(self, **settings: str) -> None:
        self.split = settings.pop("split", "train")
        chosen = {key: settings.pop(key, choices[0]) for key, choices in _CHOICES.items()}
        for key in settings:
            raise unknown_name("setting of npy", key, (*_CHOICES, "split"), listing="docs/stores.md")
        for key, choices in _CHOICES.items():
            if chosen[key] not in choices:
                raise UsageError(f"npy has {key}={' or '.join(choices)}, not {key}={chosen[key]}.")
        if not re.fullmatch(r"\w[\w.-]*", self.split):
            raise UsageError(f"The split {self.split!r} begins a file's name; give a word, such as test.")
        self.together = chosen["layers"] == "together"
        self.sample_first, self.by_file = chosen["first"] == "sample", chosen["names"] == "file"
        said = {**chosen, "split": self.split}
        usual = {**{key: choices[0] for key, choices in _CHOICES.items()}, "split": "train"}
        inside = ",".join(f"{key}={value}" for key, value in said.items() if value != usual[key])
        self.name = f"npy[{inside}]" if inside else "npy"

    def fits(self, listing: Sequence[str]) -> None:
        seen: dict[str, str] = {}
        for name in listing if self.by_file else ():
            stem = PurePosixPath(name).with_suffix("").as_posix()
            if seen.setdefault(stem, name) != name:
                raise UsageError(
                    f"{seen[stem]} and {name} would both become {stem}.npy; rename one, or leave out names=file."
                )

    def holds(self, dtype: str) -> None:
        _in_numpy(dtype)

    def leftovers(self, folder: Path) -> Iterator[Path]:
        yield from {*super().leftovers(folder), *folder.rglob("*.npy.tmp")}

    def write(self, folder: Path, facts: Facts, features: Features, start: int) -> str:
        files = {}
        arrays = {"": concatenate(features)} if self.together and features else dict(features)
        for row, (name, index) in enumerate(indices(facts, start)):
            stem = PurePosixPath(name).with_suffix("").as_posix()
            sample = stem if self.by_file else f"{self.split}{index}"
            for layer, array in arrays.items():
                file = self._path(sample, layer)
                content = npy_bytes(array[row])
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                with one_move(folder / file) as temporary:
                    temporary.write_bytes(content)
                files[file] = digest_bytes(content)
        whole = Facts(facts.shard, facts.mark, facts.names, facts.skipped, facts.layers, {"files": files})
        seal = whole.sealed_over(())
        with one_move(folder / self.file(facts.shard)) as temporary:
            temporary.write_text(whole.text(seal), encoding="utf-8")
        return seal

    def facts(self, folder: Path, k: int) -> Facts:
        file = folder / self.file(k)
        try:
            return read_facts(file.read_text(encoding="utf-8"), file)
        except UnicodeDecodeError as error:
            raise DamagedShardError(file) from error

    def seal(self, folder: Path, facts: Facts) -> str:
        record = folder / self.file(facts.shard)
        for file, wanted in facts.extra.get("files", {}).items():
            if not (folder / file).is_file():
                raise DamagedShardError(record, f"names {file}, which is missing")
            if digest_file(folder / file) != wanted:
                raise DamagedShardError(record, f"names {file}, which was changed after gate wrote it")
        return facts.sealed_over(())

    def _path(self, sample: str, layer: str) -> str:
        if not layer:
            return f"{sample}.npy"
        theirs = peer_name(layer) or layer
        return f"{sample}/{theirs}.npy" if self.sample_first else f"{theirs}/{sample}.npy"


class WebDataset(Layout):
    """A tar file a shard, a group of members an image. Its bytes follow from what is in it: no times, no owners."""

    name, suffix = "webdataset", "tar"

    def holds(self, dtype: str) -> None:
        _in_numpy(dtype)

    def write(self, folder: Path, facts: Facts, features: Features, start: int) -> str:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for row, (name, index) in enumerate(indices(facts, start)):
                _add(tar, f"{index:09d}.json", json.dumps({"name": name, "index": index}).encode())
                for layer, tensor in features.items():
                    _add(tar, f"{index:09d}.{layer}.npy", npy_bytes(tensor[row]))
        samples = stream.getbuffer()
        seal = facts.sealed_over((samples,))
        with one_move(folder / self.file(facts.shard)) as temporary, temporary.open("wb") as file:
            file.write(_first_member(facts.text(seal).encode()))
            file.write(samples)
        return seal

    def facts(self, folder: Path, k: int) -> Facts:
        return _read_about(folder / self.file(k))[0]

    def seal(self, folder: Path, facts: Facts) -> str:
        file = folder / self.file(facts.shard)
        _, begin = _read_about(file)
        with file.open("rb") as stream:
            stream.seek(begin)
            return facts.sealed_over(iter(lambda: stream.read(1 << 20), b""))


def indices(facts: Facts, start: int) -> list[tuple[str, int]]:
    """The name of each row and its index in the listing. start: the index of the chunk's first image."""
    chunk = sorted({*facts.names, *(name for name, _ in facts.skipped)})
    place = {name: start + i for i, name in enumerate(chunk)}
    return [(name, place[name]) for name in facts.names]


def concatenate(features: Features) -> Tensor:
    """Layers as one array: maps (n, c, h, w) resized by nearest neighbour to the largest, vectors (n, d) as they are.

    Raises UsageError where they cannot meet: maps beside vectors, attention maps beside features, several dtypes.
    """
    import torch
    from torch.nn.functional import interpolate

    tensors = list(features.values())
    apart = "; choose npy[layers=apart]."
    if len({tensor.ndim for tensor in tensors}) > 1 or len({tensor.dtype for tensor in tensors}) > 1:
        raise UsageError(f"npy concatenates layers of one kind and dtype, not {', '.join(features)}{apart}")
    if len(tensors) > 1 and any(name.endswith(".map") for name in features):
        raise UsageError(f"An attention map has no place among the channels of other layers{apart}")
    if tensors[0].ndim == 2 or len(tensors) == 1:
        return torch.cat(tensors, dim=1)
    if tensors[0].ndim != 4:
        raise UsageError(f"npy concatenates maps (channels, h, w), and {next(iter(features))} is none{apart}")
    size = max((tuple(tensor.shape[-2:]) for tensor in tensors), key=lambda of: of[0] * of[1])
    return torch.cat([t if t.shape[-2:] == size else interpolate(t, size) for t in tensors], dim=1)


def npy_bytes(tensor: Tensor) -> bytes:
    """One image's features as the bytes of a .npy file. Raises UsageError for a dtype that numpy lacks."""
    import numpy as np

    _in_numpy(str(tensor.dtype).removeprefix("torch."))
    stream = io.BytesIO()
    np.save(stream, tensor.contiguous().numpy(), allow_pickle=False)
    return stream.getvalue()


def _in_numpy(dtype: str) -> None:
    if dtype == "bfloat16":
        raise UsageError(
            "A .npy file holds no bfloat16; store fp16 or fp32, or choose the layout safetensors."
        )


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _first_member(content: bytes) -> bytes:
    """The blocks of a member that others may follow: an archive without the zeros that end it."""
    member = tarfile.TarInfo(ABOUT)
    member.size = len(content)
    return member.tobuf() + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _read_about(file: Path) -> tuple[Facts, int]:
    """What a tar shard says of itself, and where its samples begin. Raises DamagedError, FileNotFoundError."""
    try:
        with tarfile.open(file, "r:") as tar:
            member = tar.next()
            stream = tar.extractfile(member) if member and member.name == ABOUT else None
            content = stream.read() if stream else b""
        facts, first = read_facts(content.decode(), file), _first_member(content)
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise DamagedShardError(file) from error
    with file.open("rb") as raw:
        if raw.read(len(first)) != first:
            raise DamagedShardError(file)
    return facts, len(first)
