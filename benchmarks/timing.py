"""Seconds of rows that take turns, and ratios with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Row(Protocol):
    """Something that does a job. ready: what is done once beforehand, outside the clock, and undone afterwards.

    One that lies in another process has `seconds` besides: its last turn's, by its own clock.
    """

    def ready(self) -> AbstractContextManager[None]: ...

    def __call__(self) -> Any: ...


@dataclass(frozen=True)
class Ratio:
    """How many times as long one row takes as another: of each repeat, in which both had their turn."""

    slow: str
    fast: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_dict(self) -> dict[str, Any]:
        return {
            "slow": self.slow,
            "fast": self.fast,
            "values": list(self.values),
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
        }


def taken(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it gives; what a GPU has still to do is waited for."""
    _finish()
    began = time.perf_counter()
    result = work()
    _finish()
    return time.perf_counter() - began, result


def turn(row: Row) -> tuple[float, Any]:
    """Seconds of one turn, and what it gives."""
    with row.ready():
        seconds, result = taken(row)
    return getattr(row, "seconds", seconds), result


def alternated(rows: Mapping[str, Row], repeats: int) -> dict[str, list[float]]:
    """{row: seconds of each repeat}; A B C A B C ..., so that what the machine does besides hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, row in rows.items():
            seconds[name].append(turn(row)[0])
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]) -> list[Ratio]:
    """Of the pairs (slow, fast) whose rows were both measured."""
    return [
        Ratio(slow, fast, tuple(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)))
        for slow, fast in pairs
        if slow in seconds and fast in seconds
    ]


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
