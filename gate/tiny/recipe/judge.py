"""What a judgement of tiny is made of: scenes that training never saw, and figures with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gate.tiny.scenes import Scene, Split, render
from gate.tiny.tokens import tokenise

SEED = 2024  # training uses series 1


@dataclass(frozen=True)
class Figure:
    """One measured number: estimate with its 95 % interval, n, unit, and the value asked for (None: for
    information), as a floor or, with `at_most`, as a ceiling."""

    value: float
    low: float
    high: float
    n: int
    unit: str
    required: float | None = None
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the estimate reaches what is required."""
        if self.required is None:
            return True
        return self.value <= self.required if self.at_most else self.value >= self.required

    @property
    def demand(self) -> str:
        """What is asked, in words; "" where nothing is."""
        if self.required is None:
            return ""
        return f"{'<=' if self.at_most else '>='} {self.required:.3g}"


def share(hits: int, n: int, unit: str, required: float | None = None) -> Figure:
    """A share in [0, 1] with Wilson's 95 % interval."""
    z, p = 1.96, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return Figure(p, centre - half, centre + half, n, unit, required)


def mean_of(values: npt.NDArray[Any], unit: str, required: float | None = None) -> Figure:
    """A mean with its normal 95 % interval."""
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    mean = float(values.mean())
    return Figure(mean, mean - half, mean + half, len(values), unit, required)


def scenes(objects: Split, n: int, *, count: int | None = None, offset: int = 0) -> list[Scene]:
    """n evaluation scenes."""
    return [render(SEED, offset + index, objects=objects, count=count) for index in range(n)]


def as_images(batch: list[Scene]) -> torch.Tensor:
    """(n, 3, 64, 64) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack([s.image for s in batch])).permute(0, 3, 1, 2).float() / 127.5 - 1


def encode_text(pipeline: Any, texts: list[str]) -> torch.Tensor:
    """Prompt embeddings (n, TOKENS, WIDTH)."""
    embeddings: torch.Tensor = pipeline.text_encoder(tokenise(pipeline.tokenizer, texts)).last_hidden_state
    return embeddings


def encode_images(pipeline: Any, batch: list[Scene]) -> torch.Tensor:
    """Scaled posterior means (n, 4, 16, 16)."""
    parts = [
        pipeline.vae.encode(as_images(batch[i : i + 32])).latent_dist.mean for i in range(0, len(batch), 32)
    ]
    return torch.cat(parts) * float(pipeline.vae.config.scaling_factor)
