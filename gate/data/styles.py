"""Other looks of a scene: domains that the tiny backbone was not trained on. Masks and labels stay true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Style = Callable[
    [Image, str, int], tuple[Image, str]
]  # image, caption, number of the scene -> image, caption
PAPER, GRAPHITE = np.array([250.0, 247.0, 240.0]), np.array([52.0, 50.0, 56.0])
HIGH, LOW = "high quality", "low quality"


def as_they_are(image: Image, caption: str, number: int) -> tuple[Image, str]:
    """The scene itself."""
    return image, caption


def sketched(image: Image, caption: str, number: int) -> tuple[Image, str]:
    """A pencil sketch, captioned "a sketch of ..."."""
    return sketch(image), f"a sketch of {caption.removeprefix('a photo of ')}"


def degraded(image: Image, caption: str, number: int) -> tuple[Image, str]:
    """Blurred and noisy, under the same caption."""
    return degrade(image, number), caption


def of_either_quality(image: Image, caption: str, number: int) -> tuple[Image, str]:
    """Every other scene degraded, and the caption says which it is."""
    low = number % 2 == 1
    return (degrade(image, number) if low else image), f"{caption}, {LOW if low else HIGH}"


def sketch(image: Image) -> Image:
    """Graphite on paper: luminance divided by its own blur ("colour dodge"), so that edges and dark areas stay.

    image: (h, w, 3) uint8; a pure function of it. The blur's deviation is 1/24 of the height.
    """
    from scipy import ndimage

    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    blurred = ndimage.gaussian_filter(luma, image.shape[0] / 24, mode="nearest")
    light: NDArray[Any] = np.clip(luma / np.maximum(blurred, 1), 0, 1) ** 1.5
    tone = np.clip(0.85 * light + 0.15 * luma / 255, 0, 1)[..., None]
    made: Image = np.round(GRAPHITE + tone * (PAPER - GRAPHITE)).astype(np.uint8)
    return made


def degrade(image: Image, number: int) -> Image:
    """A bad photograph: blur of 1/40 of the height, then noise of deviation 12 that is a function of `number`."""
    from scipy import ndimage

    sigma = image.shape[0] / 40
    blurred = ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="nearest")
    noise = np.random.default_rng([7, number]).normal(0, 12, image.shape)
    made: Image = np.clip(np.round(blurred + noise), 0, 255).astype(np.uint8)
    return made


def clutter(image: Image, behind: NDArray[np.bool_], number: int) -> Image:
    """Two dozen discs and bars of any colour behind the objects, a function of `number`.

    image: (h, w, 3) uint8; behind: (h, w), where no object is. The shapes are half transparent and of the size of
    small objects, so that neither colour nor edges alone give an object away.
    """
    rng = np.random.default_rng([11, number])
    h, w = behind.shape
    y, x = (np.mgrid[:h, :w] + 0.5) / h
    made = image.astype(np.float64)
    for _ in range(24):
        across, down, angle = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, np.pi)
        long, short = rng.uniform(0.08, 0.25), rng.uniform(0.03, 0.1)
        u = (x - across) * np.cos(angle) + (y - down) * np.sin(angle)
        v = (y - down) * np.cos(angle) - (x - across) * np.sin(angle)
        disc = rng.random() < 0.5
        inside = np.hypot(u / long, v / short) < 1 if disc else (np.abs(u) < long) & (np.abs(v) < short)
        colour = rng.uniform(0, 255, 3)
        where = inside & behind
        made[where] = 0.4 * made[where] + 0.6 * colour
    result: Image = np.round(made).astype(np.uint8)
    return result
