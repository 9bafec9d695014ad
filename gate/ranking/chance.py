"""Whether a probe reads anything at all from features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gate.probe import Array, Probe
from gate.ranking.entry import Evidence
from gate.ranking.statistics import resample_counts

ALPHA = 0.05


def says_something(
    probe: Probe, vanilla: Evidence, techniques: Mapping[str, Evidence], *, seed: int, resamples: int
) -> bool:
    """Whether vanilla, or any technique beyond chance over all of them, beats guessing by this probe."""
    sides = [(vanilla, 1), *((evidence, len(techniques)) for evidence in techniques.values())]
    return any(
        beats_chance(probe, e.counts[probe.name], alpha=ALPHA / tests, seed=seed, resamples=resamples)
        for e, tests in sides
        if e.counts
    )


def beats_chance(
    probe: Probe, counts: Array, *, alpha: float = ALPHA, seed: int, resamples: int = 1000
) -> bool:
    """Whether the error lies below that of guesses as frequent as the probe's, which do not look at the features.

    In all but `alpha` of the bootstrap resamples, by the mean over cells. counts: (n, cells, ...), what the probe gave.
    A probe that cannot say what a reader of nothing would make (`Probe.blind_error`) is believed: True. With one
    sample a class nothing can be learned of a class: every guess is wrong.
    """
    columns = probe.columns(counts)
    n, cells = columns.shape[:2]
    drawn = resample_counts(np.random.default_rng(seed), n, resamples)
    sums = (drawn @ columns.reshape(n, -1)).reshape(resamples, cells, -1)
    blind = probe.blind_error(sums, np.array(n))
    if blind is None:
        return True
    return bool(np.quantile((blind - probe.error_of_sums(sums, np.array(n))).mean(axis=-1), alpha) > 0)
