"""Seals: a checksum that lies in the file it is of, so that no number changes unseen.

They find what disks, copies and editors do to a run. Whoever means to deceive can seal anew; `gate verify` measures
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gate.errors import DamagedError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SEAL = "digest"


def digest(value: Mapping[str, Any]) -> str:
    """Of a JSON object without its seal; the layout of the text and the order of the keys do not count."""
    rest = {k: v for k, v in value.items() if k != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_arrays(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, str]) -> str:
    """Of named arrays, with their types and shapes, and of what is said about them."""
    import numpy as np

    found = hashlib.blake2b(digest(facts).encode(), digest_size=16)
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        found.update(f"\n{key} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def digest_bytes(content: bytes) -> str:
    """Of bytes in memory; what `digest_file` says of the file that holds them."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_file(file: Path) -> str:
    """Of a file's bytes, read piece by piece. Raises OSError."""
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its seal."""
    return {**value, SEAL: digest(value)}


def check_seal(value: Mapping[str, Any], source: str, cure: str) -> None:
    """Raises DamagedError where the object is not what was sealed. One without a seal passes: older gates set none."""
    if value.get(SEAL, "") not in ("", digest(value)):
        raise DamagedError(f"{source} was changed after gate wrote it; {cure}")
