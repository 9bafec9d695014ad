"""Whether a probe reads anything at all from features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gate.probe import Array, Probe
from gate.ranking.entry import Evidence
from gate.ranking.statistics import Indices, multiplicities, paired_bca

ALPHA = 0.05


def says_something(
    probe: Probe, vanilla: Evidence, techniques: Mapping[str, Evidence], *, seed: int, resamples: int
) -> bool:
    """Whether vanilla, or any technique beyond chance over all of them, beats guessing by this probe."""
    sides = [(vanilla, 1), *((evidence, len(techniques)) for evidence in techniques.values())]
    return any(
        beats_chance(
            probe, e.counts[probe.name], confidence=1 - ALPHA / tests, seed=seed, resamples=resamples
        )
        for e, tests in sides
        if e.counts
    )


def beats_chance(
    probe: Probe, counts: Array, *, confidence: float = 1 - ALPHA, seed: int, resamples: int = 1000
) -> bool:
    """Whether the error lies below that of guesses as frequent as the probe's, which do not look at the features.

    By an interval over samples of the mean over cells. A probe without a figure of its own states no chance: True.
    counts: (n, cells, k, k). With one sample a class nothing can be learned of a class, and every guess is wrong.
    """
    if not probe.figure:
        return True
    columns = probe.columns(counts)
    n, cells = columns.shape[:2]

    def gain(index: Indices) -> NDArray[np.float64]:
        drawn = multiplicities(index, n)
        sums = (drawn @ columns.reshape(n, -1)).reshape(*drawn.shape[:-1], cells, -1)
        size = drawn.sum(axis=-1)[..., None]
        true, predicted, _ = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        tested = np.maximum(true.sum(axis=-1, keepdims=True), 1)
        blind = np.concatenate([true, predicted, true * predicted / tested], axis=-1)
        errors = [probe.error_of_sums(each, size) for each in (blind, sums)]
        return np.asarray((errors[0] - errors[1]).mean(axis=-1))

    return paired_bca(gain, n, resamples=resamples, confidence=confidence, seed=seed).low > 0
