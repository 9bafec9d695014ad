"""Diffusion-GAN's noise: how much is drawn how often, and how strong it may become."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

T_MIN, T_MAX = 10, 1000
TARGET = 0.6  # of E sign(D(real)); above it the discriminator finds its task too easy
EVERY = 4  # batches between two looks
BETAS = (1e-4, 2e-2)  # linear over T_MAX


def ramp(u: Array, t: Array | int) -> npt.NDArray[np.int64]:
    """Draws of pi on 1 ... t, pi(s) ~ s, the priority distribution, from u in (0, 1): the least s with CDF(s) >= u.

    The CDF is s (s + 1) / (t (t + 1)). u, t: of shapes that broadcast.
    """
    top = np.asarray(t, dtype=np.float64)
    found = np.ceil((np.sqrt(1 + 4 * np.asarray(u) * top * (top + 1)) - 1) / 2)
    return np.asarray(np.clip(found, 1, top), dtype=np.int64)


def signal_and_noise(t: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """sqrt(abar_t) and sqrt(1 - abar_t) of the linear schedule; t = 0 is the identity. t: int in 0 ... T_MAX."""
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(*BETAS, T_MAX))])[t]
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


class AdaptiveT:
    """How far the noise reaches: T = T_MIN + round(p (T_MAX - T_MIN)), p in [0, 1] (Wang et al. 2022).

    Every EVERY batches p moves by sign(E sign(D(real)) - TARGET) EVERY batch / (1000 kimg), so a discriminator that is
    always right drives it from 0 to 1 over 1000 kimg samples. Counted in samples: no rounding adds up.
    """

    def __init__(self, batch: int, kimg: float = 100) -> None:
        self.batch, self.whole = batch, round(1000 * kimg)
        self._moved = 0
        self._signs: list[float] = []

    @property
    def p(self) -> float:
        """Share of the way from T_MIN to T_MAX."""
        return self._moved / self.whole

    @property
    def t(self) -> int:
        """T."""
        return T_MIN + round(self.p * (T_MAX - T_MIN))

    def see(self, logits: Array) -> None:
        """The discriminator's logits of a batch of real rows, > 0 where it is right; every EVERY batches, p moves."""
        self._signs.append(float(np.sign(logits).mean()))
        if len(self._signs) == EVERY:
            step = int(np.sign(np.mean(self._signs) - TARGET)) * EVERY * self.batch
            self._moved = min(max(self._moved + step, 0), self.whole)
            self._signs.clear()
