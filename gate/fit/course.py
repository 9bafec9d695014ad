"""What a fit learns from, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gate.sample import SampleSet


@dataclass(frozen=True)
class Material:
    """What is trained on and judged by. x0: (n, c, h, w); captions: n tuples of texts; held_out: indices."""

    samples: SampleSet
    x0: Tensor
    captions: tuple[tuple[str, ...], ...]
    trained: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclass
class Course:
    """What has happened so far. held_out: {step: (m,) eps errors of the held-out images}; losses: mean since then."""

    step: int = 0
    best: int = 0
    held_out: dict[int, list[float]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    micro: int = 0
