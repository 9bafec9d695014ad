"""What is looked at: features in three colours, shared by all techniques."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PCA_SAMPLES = 2


class Basis(NamedTuple):
    """A colour space of features. mean: (c,). axes: (3, c). low, high: (3,), what becomes 0 and 1."""

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor


def pca_layer(features: Mapping[str, Tensor]) -> str:
    """The layer to look at: the finest grid, and of those the one with most channels."""
    return max(features, key=lambda k: (features[k].shape[-1], features[k].shape[1]))


def pca_basis(reference: Tensor) -> Basis:
    """Mean, three principal axes and the range of F_ref's scores, so that all pictures share one colour space.

    reference: (b, c, h, w).
    """
    x = reference.permute(0, 2, 3, 1).reshape(-1, reference.shape[1]).double()
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False)[2][:3]
    sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    axes = axes * sign
    scores = (x - mean) @ axes.T
    return Basis(mean, axes, torch.quantile(scores, 0.02, dim=0), torch.quantile(scores, 0.98, dim=0))


def pca_image(feature: Tensor, basis: Basis) -> NDArray[np.float32]:
    """(b, c, h, w) -> (b, h, w, 3) in [0, 1] in the colours of the basis."""
    scores = (feature.permute(0, 2, 3, 1).double() - basis.mean) @ basis.axes.T
    span = (basis.high - basis.low).clamp_min(1e-9)
    image: NDArray[np.float32] = ((scores - basis.low) / span).clamp(0, 1).float().cpu().numpy()
    return image
