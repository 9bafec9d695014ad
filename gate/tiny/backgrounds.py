"""Quiet backgrounds for the tiny scenes: plain, gradient, cloudy and ground-and-sky, in a small set of soft
colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Kind = Literal["plain", "gradient", "cloudy", "ground"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (240, 240, 238),
    "grey": (168, 172, 178),
    "blue": (150, 188, 226),
    "green": (160, 204, 156),
    "yellow": (238, 222, 160),
    "pink": (236, 192, 202),
    "purple": (190, 176, 220),
    "brown": (190, 164, 138),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "grass": (122, 178, 96),
    "sand": (224, 202, 150),
    "snow": (236, 240, 246),
    "water": (98, 152, 200),
}
SKY = (186, 214, 240)


@dataclass(frozen=True)
class Background:
    """What lies behind the objects. colours: one or two RGB triples in [0, 255]; angle in degrees (gradient),
    horizon in [0, 1] from the top (ground); texture_seed fixes the soft noise of a cloudy background."""

    kind: Kind
    name: str
    colours: tuple[tuple[float, float, float], ...]
    angle: float
    horizon: float
    texture_seed: int

    @property
    def phrase(self) -> str:
        """As a caption says it after 'on'."""
        return self.name if self.kind == "ground" else f"a {self.name} background"


def pick_background(rng: np.random.Generator) -> Background:
    """Draw one of the four kinds, a colour and its variation."""
    kind: Kind = ("plain", "gradient", "cloudy", "ground")[int(rng.integers(4))]
    names = list(GROUNDS if kind == "ground" else COLOURS)
    name = names[int(rng.integers(len(names)))]
    first = _vary((GROUNDS if kind == "ground" else COLOURS)[name], rng, 10)
    second = _vary(SKY, rng, 8) if kind == "ground" else _vary(COLOURS[name], rng, 26)
    angle = float(rng.uniform(0, 360))
    horizon = float(rng.uniform(0.4, 0.7))
    return Background(kind, name, (first, second), angle, horizon, int(rng.integers(2**31)))


def _vary(
    colour: tuple[int, int, int], rng: np.random.Generator, spread: float
) -> tuple[float, float, float]:
    """Lighter or darker as a whole by up to `spread`, each channel by up to 5 more."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-5, 5, 3)
    red, green, blue = np.clip(np.array(colour) + shift, 0, 255).tolist()
    return red, green, blue


def draw_background(background: Background, size: int) -> npt.NDArray[Any]:
    """(size, size, 3) float64 in [0, 255]."""
    first, second = (np.array(colour) for colour in background.colours)
    if background.kind == "plain":
        share = np.zeros((size, size))
    elif background.kind == "gradient":
        y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
        radians = np.deg2rad(background.angle)
        share = np.clip(x * np.cos(radians) + y * np.sin(radians) + 0.5, 0, 1)
    elif background.kind == "cloudy":
        noise = np.random.default_rng(background.texture_seed).random((5, 5)).astype(np.float32)
        smooth = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        share = np.clip(np.asarray(smooth, dtype=np.float64), 0, 1)
    else:
        rows = (np.arange(size) + 0.5) / size
        soft = np.clip((background.horizon - rows) * 32 + 0.5, 0, 1)
        share = np.broadcast_to(soft[:, None], (size, size))
    return first + (second - first) * share[..., None]
