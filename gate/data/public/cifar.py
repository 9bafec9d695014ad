"""CIFAR-10's python version: pickles of numpy arrays, read by an unpickler that makes nothing else."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gate.data.images import fit_image
from gate.data.public.parts import drawn, need
from gate.errors import ConfigurationError
from gate.sample import Sample, SampleSet

LAYOUT = "CIFAR-10's python layout: cifar-10-batches-py/data_batch_1 ... 5, test_batch and batches.meta"
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
SIDE = 32


def _bytes(text: str, encoding: str) -> bytes:
    """What protocol 2 says bytes by; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it wants the codec {encoding!r}, which no array needs")
    return text.encode("latin-1")


# all that a pickled array names, numpy's function by its old home and its new one
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.zeros(0))[0],
    ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.zeros(0))[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes,
}


class _Arrays(pickle.Unpickler):
    """Raises UnpicklingError for anything that is no array."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def root(folder: Path) -> Path:
    """The folder of the batches: itself, or the one that the archive unpacks to."""
    inner = folder / "cifar-10-batches-py"
    return inner if inner.is_dir() else folder


def is_here(folder: Path) -> bool:
    """Whether CIFAR-10's batches lie there."""
    return any((root(folder) / name).is_file() for name in (*TRAIN, "test_batch"))


def load(folder: Path, split: str, *, size: int, limit: int | None = None, seed: int = 0) -> SampleSet:
    """The images of a split ("train" or "test"), or `limit` of them, enlarged to size x size.

    Raises ConfigurationError where a batch is missing, malformed, or pickles anything but arrays.
    """
    at = root(folder)
    meta = _read(need(at / "batches.meta", LAYOUT))
    said = meta.get(b"label_names")
    names = tuple(_text(name) for name in said) if isinstance(said, (list, tuple)) else ()
    if not names:
        raise ConfigurationError(f"{str(at / 'batches.meta')!r} has no label_names; expected {LAYOUT}.")
    every = []
    for file in [need(at / name, LAYOUT) for name in (TRAIN if split == "train" else ("test_batch",))]:
        batch = _read(file)
        data: Any = batch.get(b"data")
        labels: Any = batch.get(b"labels")
        if not _is_data(data) or not _are_labels(labels, len(data), len(names)):
            raise ConfigurationError(
                f"{str(file)!r} holds {_said(data)} as data and {_said(labels)} as labels; expected an array "
                f"(n, 3072) uint8 and n whole numbers below {len(names)}."
            )
        pairs = zip(data, labels, strict=True)
        every += [(f"{file.name}/{i:05d}", row, int(k)) for i, (row, k) in enumerate(pairs)]
    samples = tuple(
        Sample(
            fit_image(Image.fromarray(row.reshape(3, SIDE, SIDE).transpose(1, 2, 0)), size),
            label=k,
            source=key,
        )
        for key, row, k in drawn(every, lambda item: item[0], limit, seed)
    )
    return SampleSet(samples, f"cifar-10 {split}", classes=names)


def _read(file: Path) -> dict[bytes, Any]:
    try:
        found = _Arrays(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises whatever its bytes ask for
        raise ConfigurationError(f"{str(file)!r} is no batch of CIFAR-10: {error}.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{str(file)!r} holds a {type(found).__name__}; expected {LAYOUT}.")
    return {key if isinstance(key, bytes) else str(key).encode(): value for key, value in found.items()}


def _is_data(value: Any) -> bool:
    whole = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 2
    return whole and value.shape[1] == 3 * SIDE * SIDE


def _are_labels(value: Any, n: int, classes: int) -> bool:
    whole = isinstance(value, (list, np.ndarray)) and len(value) == n
    return whole and all(isinstance(k, (int, np.integer)) and 0 <= k < classes for k in value)


def _said(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} {value.dtype}"
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, (list, tuple, dict)) else f"a {kind}"


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
