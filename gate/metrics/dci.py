"""Disentanglement of feature channels: whether each speaks of one class alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gate.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from gate.metric import Pass

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
CHANNELS = 32  # as many as InfoDiffusion's code has numbers
ROUNDING = 1e-9  # of weights of standardised codes: a resample of one row has no other
ALPHA = 0.25  # of the ridge, a sample: as many samples as columns must not be learned by heart


def disentanglement(importance: Array) -> Doubles:
    """D of DCI (Eastwood and Williams 2018): sum_i rho_i (1 - H_k(P_i)), in [0, 1].

    importance: (..., d, k) >= 0, of each of d codes for each of k factors. P_i: the row over its sum; H_k: entropy to
    base k; rho_i: the row's share of all importance. One-hot rows give 1, uniform ones 0. Returns (...).
    """
    k = importance.shape[-1]
    whole = importance.sum(axis=-1)
    share = importance / np.where(whole > 0, whole, 1)[..., None]
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1) / np.log(max(k, 2))
    every = whole.sum(axis=-1, keepdims=True)
    rho = whole / np.where(every > 0, every, 1)
    return np.asarray((rho * (1 - entropy)).sum(axis=-1))


def ridge_importance(x: Array, labels: Array, weights: Array) -> Doubles:
    """W^2 of a ridge from standardised codes to one-hot classes, (..., d, k). x: (n, d); labels: (n,) int; weights:
    (..., n), how often each row counts."""
    std = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(std > 0, std, 1)
    truth = np.eye(int(labels.max()) + 1)[labels]
    total = weights.sum(axis=-1)[..., None, None]
    n, (d, k) = len(z), (z.shape[1], truth.shape[1])
    joint = np.concatenate([z, truth], axis=1)
    second = (weights @ (joint[:, :d, None] * joint[:, None, :]).reshape(n, -1)).reshape(
        *weights.shape[:-1], d, d + k
    )
    first = (weights @ joint)[..., None]
    centred = second - first[..., :d, :] * first.swapaxes(-1, -2) / total
    gram = centred[..., :d] + ALPHA * total * np.eye(d)
    found = np.square(np.linalg.solve(gram, centred[..., d:]))
    return np.where(found > ROUNDING**2, found, 0)


def coded(seen: Pass) -> Tensor:
    """(b, CHANNELS + 1): means over positions of channels spread evenly over all layers, and the label.

    Columns of zeros where there are fewer channels: they matter for no class.
    """
    import torch
    from torch.nn.functional import pad

    means = torch.cat([f.float().mean(dim=(2, 3)) for f in seen.response.features.values()], dim=1)
    means = pad(means, (0, max(0, CHANNELS - means.shape[1])))
    every = torch.arange(CHANNELS, device=means.device) * means.shape[1] // CHANNELS
    labels = torch.tensor([float(s.label) for s in seen.samples if s.label is not None])
    return torch.cat([means[:, every], labels[:, None].to(means)], dim=1)


class Dci(Metric):
    """Disentanglement: 1 where each channel matters for one class, 0 where each matters for all alike.

    Channels: 32 spread evenly over the layers, averaged over positions. Factors: the classes, each against the rest
    (the papers have factors of generation or attributes of faces). Importance: squared weights of a ridge on
    standardised codes, the variance that each gives (theirs: lasso or trees); squares, for classes exclude each
    other, and every code of one says a little against all others. Of features and of classes it is ours;
    InfoDiffusion (Wang et al. 2023) measures its code so.
    """

    name = "dci"
    summary = "Disentanglement of channels over classes: whether each channel speaks of one class alone"
    source = "Eastwood and Williams 2018, DCI; as used by Wang et al. 2023 (arXiv 2306.08757)"
    unit = "1 - entropy to base k, weighted by importance"
    direction = "higher"
    range = (0.0, 1.0)
    compares = "pass"
    needs = frozenset({"features", "labels"})
    columns_each = CHANNELS + 1
    standard = False
    weakness = (
        "Looks at single channels: a rotation of good features, which no linear probe notices, changes it."
    )

    def measure(self, seen: Pass) -> Tensor:
        return coded(seen)

    def error_of_set(self, columns: Array, multiplicities: Array) -> Doubles:
        x, labels = columns[:, :-1], columns[:, -1].astype(np.int64)
        return np.asarray(1 - disentanglement(ridge_importance(x, labels, multiplicities)))
