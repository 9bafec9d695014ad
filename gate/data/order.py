"""Which samples come first: a draw from (seed, name), balanced over groups, whatever the file system."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


def draw(seed: int, name: str) -> bytes:
    """A sort key, uniform over names, that depends on (seed, name) alone."""
    return hashlib.blake2b(f"{seed}\0{name}".encode(errors="surrogateescape"), digest_size=16).digest()


def interleave(streams: Mapping[str, Iterator[T]], seed: int) -> Iterator[T]:
    """One of each stream per round, each round in an order of its own, until all are exhausted.

    So every prefix is as balanced as the streams allow, and a shorter prefix begins a longer one.
    """
    left = dict(streams)
    number = 0
    while left:
        for name in sorted(left, key=lambda n: draw(seed, f"{number} {n}")):
            try:
                item = next(left[name])
            except StopIteration:
                del left[name]
            else:
                yield item
        number += 1
