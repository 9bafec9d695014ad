"""Features that hold their truth, small enough to train on in a moment."""

from __future__ import annotations

import numpy as np
import torch

from gate.tasks import Pair, Truth

SIZE, CLASSES = 32, 3


def made(n: int = 24, *, seed: int = 0, signal: float = 3.0) -> tuple[dict[str, torch.Tensor], Truth]:
    """n images: a square of one of three classes, seen in the layer "fine" (8x8) and, weakly, in "coarse" (4x4); each
    two images are a pair whose second is the first, moved by four pixels to the right."""
    g = torch.Generator().manual_seed(seed)
    labels = np.arange(n) // 2 % CLASSES
    masks = np.zeros((n, SIZE, SIZE), np.int16)
    fine, coarse = torch.randn(n, 6, 8, 8, generator=g), torch.randn(n, 4, 4, 4, generator=g)
    pairs = []
    for i in range(0, n, 2):
        fine[i + 1] = fine[i].roll(1, dims=2)
        coarse[i + 1] = coarse[i]
        for j, left in ((i, 8), (i + 1, 12)):
            masks[j, 8:24, left : left + 16] = labels[j] + 1
            fine[j, labels[j], 2:6, left // 4 : left // 4 + 4] += signal
            coarse[j, labels[j]] += signal / 2
        points = np.array([[10, 10], [14, 18], [22, 22]], np.float32)
        pairs.append(Pair(i, i + 1, points, points + np.float32([4, 0]), image=SIZE, box=16))
    names = ("a", "b", "c")
    ids = tuple(f"{seed}-{i}" for i in range(n))
    truth = Truth(ids, SIZE, names, labels.astype(np.int64), ("ground", *names), masks, tuple(pairs))
    return {"fine": fine, "coarse": coarse}, truth
