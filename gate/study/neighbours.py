"""Which class a position shows, by its nearest neighbours among positions of other images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NEIGHBOURS = 5


def nearest_classes(train: Array, y: Array, test: Array, k: int, neighbours: int = NEIGHBOURS) -> Array:
    """Vote of the nearest rows by cosine after standardising on the training rows; ties go to the nearer class.

    train: (m, c); y: (m,) int in 0 ... k - 1; test: (t, c). Returns (t,). Votes weigh by cosine, as 1 / distance would
    in order.
    """
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[std == 0] = 1
    a, b = (_unit((x - mean) / std) for x in (train, test))
    cosine = b @ a.T
    count = min(neighbours, len(train))
    best = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
    weight = 1 / (1 - np.take_along_axis(cosine, best, axis=1) + 1e-6)
    votes = np.zeros((len(test), k), weight.dtype)
    np.add.at(votes, (np.arange(len(test))[:, None], y[best]), weight)
    found: Array = votes.argmax(axis=1)
    return found


def _unit(x: Array) -> Array:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    found: Array = x / np.where(norm > 0, norm, 1)
    return found
