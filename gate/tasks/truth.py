"""What samples know about themselves, as a task reads it."""

from __future__ import annotations

import numpy as np

from gate.data.pairs import PairSet
from gate.sample import SampleSet
from gate.tasks.task import Pair, Truth


def truth_of(samples: SampleSet | PairSet) -> Truth:
    """Labels and masks of a set, where every sample has one; of pairs, the pairs too."""
    pairs: tuple[Pair, ...] = ()
    if isinstance(samples, PairSet):
        pairs = tuple(Pair(**vars(pair)) for pair in samples.pairs)
        samples = samples.samples
    labels = np.array([s.label for s in samples], np.int64) if samples.has_labels else None
    masks = np.stack([s.mask for s in samples if s.mask is not None]) if samples.has_masks else None
    size = samples[0].image.shape[0] if len(samples) else 0
    ids = tuple(s.id for s in samples)
    return Truth(ids, size, samples.classes, labels, samples.mask_classes, masks, pairs)
