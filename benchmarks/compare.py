"""Outputs are compared before times are: a row that computes something else is no faster row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.job import Outputs


@dataclass(frozen=True)
class Difference:
    """Of a row's outputs from another's. frobenius: relative, of the worst layer. cosine: the worst, between whole
    features. same: whether every bit is equal."""

    frobenius: float
    cosine: float
    same: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def difference(found: Outputs, truth: Outputs) -> Difference:
    """Over all cells and layers. Raises ValueError where keys or shapes differ, or something is not finite."""
    if found.keys() != truth.keys():
        raise ValueError(f"The outputs are of other passes: {sorted(found)[:3]} against {sorted(truth)[:3]}.")
    worst, least, same = 0.0, 1.0, True
    for cell, features in truth.items():
        for layer, expected in features.items():
            value = found[cell][layer]
            if value.shape != expected.shape:
                raise ValueError(f"{layer} is {tuple(value.shape)}, not {tuple(expected.shape)}.")
            error, cosine = _one(value, expected)
            if not error < float("inf"):
                raise ValueError(f"{layer} is not finite.")
            worst, least = max(worst, error), min(least, cosine)
            same &= value.dtype == expected.dtype and torch.equal(value, expected)
    return Difference(worst, least, same)


def _one(value: Tensor, expected: Tensor) -> tuple[float, float]:
    """Relative Frobenius error and cosine, in float64."""
    a, b = value.double().flatten(), expected.double().flatten()
    size, other = float(b.norm()), float(a.norm())
    if not size or not other:
        return (0.0, 1.0) if size == other else (float("inf"), 0.0)
    return float((a - b).norm()) / size, min(1.0, float(a @ b) / (size * other))
