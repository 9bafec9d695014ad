"""Whether features still fall into the groups that the reference falls into, found without labels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gate.errors import ConfigurationError
from gate.probe import Folds, Probe, pooled, require_finite
from gate.ridge import moments
from gate.sample import SampleSet
from gate.sinkhorn import fit_prototypes, sinkhorn, unit

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Agreement = Literal["nmi", "ari", "accuracy"]
PROTOTYPES = 8
PER_PROTOTYPE = 4  # samples at least


class Clusters(Probe):
    """1 where the Sinkhorn assignments of F and F_ref agree, 0 where they are independent.

    Pooled features, standardised by the reference's moments and of unit length; prototypes fitted to the reference
    alone; both sides assigned to them by Sinkhorn-Knopp, eps 0.05, 3 iterations, as self-guidance does (Hu et al.
    2023). Its authors use the prototypes to guide; the agreement as a measure of shift is ours. It is the same for
    any naming of the groups. prototypes: how many, one for every 4 samples at most. agreement: nmi, normalised mutual
    information (arithmetic mean); ari, adjusted Rand index; accuracy, of the best one-to-one naming (Hungarian).
    """

    name = "clusters"
    summary = "Agreement of label-free groups of features with those of the reference"
    source = (
        "Hu et al. 2023, self-guidance (arXiv 2312.08825); Sinkhorn: Caron et al. 2020 (arXiv 2006.09882)"
    )
    needs = ""
    figure = ""
    against = "reference"
    standard = False

    def __init__(self, *, prototypes: int = PROTOTYPES, agreement: Agreement = "nmi") -> None:
        if prototypes < 2 or agreement not in ("nmi", "ari", "accuracy"):
            raise ConfigurationError(
                "clusters takes 2 prototypes or more, and agreement nmi, ari or accuracy."
            )
        self.prototypes, self.agreement = prototypes, agreement

    def compare(self, features: Array, reference: Array, samples: SampleSet, folds: Folds) -> Array:
        """(n, k k): a one in the cell of (group of F_ref, group of F); sums are the contingency table."""
        require_finite(features, reference)
        k = min(self.prototypes, len(samples) // PER_PROTOTYPE)
        rows = pooled(reference)
        mean, std = moments(rows)
        z_ref, z = (unit((x - mean) / std) for x in (rows, pooled(features)))
        prototypes = fit_prototypes(z_ref, k)
        of_ref, of_it = (sinkhorn(x @ prototypes.T).argmax(axis=1) for x in (z_ref, z))
        cells = np.zeros((len(samples), k * k), np.float32)
        cells[np.arange(len(samples)), of_ref * k + of_it] = 1
        return cells

    def error_of_sums(self, sums: Array, n: Array) -> Doubles:
        k = round(sums.shape[-1] ** 0.5)
        tables = sums.reshape(*sums.shape[:-1], k, k)
        measure = {"nmi": mutual_information, "ari": rand_index, "accuracy": matched_share}[self.agreement]
        return np.asarray(1 - measure(tables))


def mutual_information(tables: Array) -> Doubles:
    """Normalised mutual information of two groupings, in [0, 1]: I / ((H_row + H_column) / 2); 1 where neither varies.

    tables: (..., k, k'), how often each pair occurs; any positive weights. Returns (...).
    """
    joint = tables / tables.sum(axis=(-2, -1), keepdims=True)
    of_row, of_column, of_both = (
        _entropy(p) for p in (joint.sum(-1), joint.sum(-2), joint.reshape(*joint.shape[:-2], -1))
    )
    mean = (of_row + of_column) / 2
    return np.asarray(
        np.where(mean > 1e-12, (of_row + of_column - of_both) / np.where(mean > 1e-12, mean, 1), 1.0)
    )


def rand_index(tables: Array) -> Doubles:
    """Adjusted Rand index (Hubert and Arabie 1985), 1 for equal groupings, 0 in the mean for independent ones."""

    def pairs(counts: Array) -> Array:
        return counts * (counts - 1) / 2

    both = pairs(tables).sum(axis=(-2, -1))
    rows, columns = pairs(tables.sum(-1)).sum(-1), pairs(tables.sum(-2)).sum(-1)
    every = pairs(tables.sum(axis=(-2, -1)))
    expected, most = rows * columns / every, (rows + columns) / 2
    room = most - expected
    return np.asarray(
        np.where(np.abs(room) > 1e-12, (both - expected) / np.where(np.abs(room) > 1e-12, room, 1), 1.0)
    )


def matched_share(tables: Array) -> Doubles:
    """Share of samples whose groups are the same under the best one-to-one naming (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    flat = tables.reshape(-1, *tables.shape[-2:])
    best = [table[linear_sum_assignment(table, maximize=True)].sum() / table.sum() for table in flat]
    return np.asarray(best).reshape(tables.shape[:-2])


def _entropy(p: Array) -> Doubles:
    """-sum p log p over the last axis, in nats."""
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1))
