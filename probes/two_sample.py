"""Whether a small discriminator tells features from their reference, under as much noise as it can bear."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gate.errors import ConfigurationError
from gate.mixture import AdaptiveT, ramp, signal_and_noise
from gate.probe import Folds, Probe, keyed_generator, pooled, require_finite
from gate.ridge import moments
from gate.sample import SampleSet

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
DIMENSIONS = 32  # principal directions of the pooled features
HIDDEN = 32
BATCH = 32  # of each kind
DRAWS = 16  # of noise that a held-out sample is judged under
APART = 0.25  # of the training rows: T follows them, and the discriminator does not learn from them
NOISE = 0.5  # standard deviation, of features that have 1
RATE, DECAY = 3e-3, 1e-3
LEAK = 0.2  # slope of the units below zero


class TwoSample(Probe):
    """Held-out accuracy of a discriminator between F_ref and F, both under Diffusion-GAN's noise (Wang et al. 2022).

    0.5 is no shift. Both kinds are pooled, standardised by the reference's moments, cut to their 32 main directions,
    and noised at t: half of the draws at t = 0, half at t ~ pi(t) on 1 ... T, with T growing while the discriminator
    is right and shrinking while it is not (`gate.mixture.AdaptiveT`). A plain two-sample test is right always as soon
    as shifts are large; under noise that follows it, a larger shift still shows. The discriminator, one hidden layer
    told t, learns on the other folds. Ours: a figure on frozen features in place of a generator's loss; T follows
    rows of both kinds that are kept apart, for of a few dozen it would else measure memory; kimg, how many thousand
    samples drive T from end to end (the paper's 100 would take a minute a technique), and steps. noise: its standard
    deviation. seed: of first weights, batches and noise.
    """

    name = "two-sample"
    summary = "Held-out accuracy of telling features from the reference under adaptive noise"
    source = "Wang et al. 2022, Diffusion-GAN (arXiv 2206.02262)"
    needs = ""
    figure = ""
    direction = "lower"
    range = (0.5, 1.0)
    against = "reference"
    standard = False

    def __init__(self, *, steps: int = 256, kimg: float = 4, noise: float = NOISE, seed: int = 0) -> None:
        if steps < 1 or kimg <= 0 or noise < 0:
            raise ConfigurationError("two-sample takes 1 step or more, kimg above 0, and noise of 0 or more.")
        self.steps, self.kimg, self.noise, self.seed = steps, kimg, noise, seed

    def compare(self, features: Array, reference: Array, samples: SampleSet, folds: Folds) -> Array:
        """(n, 2): the share of draws that are told right, both kinds together, and p of the fold's equilibrium T."""
        require_finite(features, reference)
        ids = [sample.id for sample in samples]
        real, made = pooled(reference), pooled(features)
        found = np.zeros((len(ids), 2), np.float32)
        for fold, (train, test) in enumerate(folds):
            ordered = train[np.argsort([ids[i] for i in train], kind="stable")]
            mean, std = moments(real[ordered])
            x, y = (((rows - mean) / std).astype(np.float64) for rows in (real, made))
            directions = _main_directions(x[ordered], y[ordered])
            x, y = x @ directions, y @ directions
            judge, adaptive = self._trained(x[ordered], y[ordered], fold)
            for i in test:
                found[i] = self._share_right(judge, adaptive, x[i], y[i], ids[i]), adaptive.p
        return found

    def error_of_sums(self, sums: Array, n: Array) -> Doubles:
        return np.asarray(np.maximum(sums[..., 0] / n - 0.5, 0))

    def _trained(self, real: Doubles, made: Doubles, fold: int) -> tuple[Discriminator, AdaptiveT]:
        rng = keyed_generator(f"two-sample/{self.seed}/{fold}")
        judge, adaptive = Discriminator(real.shape[1], rng), AdaptiveT(BATCH, self.kimg)
        truth = np.repeat([1.0, 0.0], BATCH)
        order = rng.permutation(len(real))
        apart = max(1, round(APART * len(real)))
        for _ in range(self.steps):
            noised, t = self._drawn(real, made, order[apart:], adaptive.t, rng)
            judge.learn(noised, t, truth)
            noised, t = self._drawn(real, made, order[:apart], adaptive.t, rng)
            adaptive.see(judge(noised, t) * (2 * truth - 1))
        return judge, adaptive

    def _drawn(
        self, real: Doubles, made: Doubles, among: Array, t_max: int, rng: np.random.Generator
    ) -> tuple[Doubles, Array]:
        """BATCH rows of each kind out of `among`, noised, and their t."""
        rows = among[rng.integers(len(among), size=(2, BATCH))]
        t = _mixture(rng, 2 * BATCH, t_max)
        return self._noised(np.concatenate([real[rows[0]], made[rows[1]]]), t, rng), t

    def _share_right(
        self, judge: Discriminator, adaptive: AdaptiveT, real: Doubles, made: Doubles, identity: str
    ) -> float:
        """The same draws of t and of noise for both: without a shift exactly one of each two is right."""
        rng = keyed_generator(f"two-sample/{self.seed}/{identity}")
        t, state = _mixture(rng, DRAWS, adaptive.t), rng.bit_generator.state
        right = []
        for row, sign in ((real, 1), (made, -1)):
            rng.bit_generator.state = state
            logits = judge(self._noised(np.tile(row, (DRAWS, 1)), t, rng), t)
            right.append((np.sign(logits * sign) + 1) / 2)
        return float(np.mean(right))

    def _noised(self, rows: Doubles, t: Array, rng: np.random.Generator) -> Doubles:
        signal, noise = signal_and_noise(t)
        return signal[:, None] * rows + self.noise * noise[:, None] * rng.standard_normal(rows.shape)


class Discriminator:
    """A logit from a row and its t: one hidden layer of leaky units, by Adam on the logistic loss."""

    def __init__(self, width: int, rng: np.random.Generator) -> None:
        self.weights = [
            rng.standard_normal((width + 2, HIDDEN)) / np.sqrt(width + 2),
            rng.standard_normal(HIDDEN + 1) / np.sqrt(HIDDEN + 1),
        ]
        self.moments = [(np.zeros_like(w), np.zeros_like(w)) for w in self.weights]
        self.step = 0

    def __call__(self, rows: Doubles, t: Array) -> Doubles:
        return self._forward(rows, t)[2]

    def _forward(self, rows: Doubles, t: Array) -> tuple[Doubles, Doubles, Doubles]:
        ones = np.ones((len(rows), 1))
        given = np.concatenate([rows, t[:, None] / 1000, ones], axis=1)
        before = given @ self.weights[0]
        hidden = np.concatenate([np.where(before > 0, before, LEAK * before), ones], axis=1)
        return given, hidden, hidden @ self.weights[1]

    def learn(self, rows: Doubles, t: Array, truth: Doubles) -> Doubles:
        """One step; returns the logits from before it. truth: 1 = real."""
        given, hidden, logits = self._forward(rows, t)
        wrong = (1 / (1 + np.exp(-np.clip(logits, -50, 50))) - truth) / len(rows)
        back = np.outer(wrong, self.weights[1][:-1]) * np.where(hidden[:, :-1] > 0, 1, LEAK)
        self.step += 1
        for weight, slope, (first, second) in zip(
            self.weights, (given.T @ back, hidden.T @ wrong), self.moments, strict=True
        ):
            first += 0.1 * (slope - first)
            second += 0.001 * (slope**2 - second)
            scale = np.sqrt(second / (1 - 0.999**self.step)) + 1e-8
            weight -= RATE * (first / (1 - 0.9**self.step) / scale + DECAY * weight)
        return logits


def _mixture(rng: np.random.Generator, n: int, t: int) -> npt.NDArray[np.int64]:
    """Half zeros, half from pi on 1 ... t, in turn: both kinds of a batch get both."""
    drawn = ramp(rng.random(n), t)
    drawn[::2] = 0
    return drawn


def _main_directions(real: Doubles, made: Doubles) -> Doubles:
    """The main directions of both kinds together, (c, m), scaled so that real rows have variance 1 on average along
    them; m is 32, or what the rows span."""
    rows = np.concatenate([real, made])
    _, lengths, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    kept = min(DIMENSIONS, int((lengths > 1e-9 * max(lengths[0], 1e-300)).sum()) or 1)
    found = directions[:kept].T
    spread = np.sqrt((((real - real.mean(axis=0)) @ found) ** 2).mean())
    return np.asarray(found / (spread if spread > 0 else 1))
