"""Linear probes on the tiny denoiser's activations against the same probes on raw pixels, held-out objects
only."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from gate.tiny.recipe import judge
from gate.tiny.scenes import CLASSES, Scene

T = 50  # the paper's timestep
CELLS = 16  # pixel probes work on the latent's 16x16 grid

Array = npt.NDArray[Any]


def activations(pipeline: Any, batch: list[Scene]) -> dict[str, torch.Tensor]:
    """Outputs of the UNet's four up blocks at t = 50 with the empty prompt, {name: (n, c, h, w)}."""
    found: dict[str, list[torch.Tensor]] = {}
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, name=f"up_blocks.{k}": found.setdefault(name, []).append(out)
        )
        for k, block in enumerate(pipeline.unet.up_blocks)
    ]
    abar = pipeline.scheduler.alphas_cumprod[T]
    empty = judge.encode_text(pipeline, [""])
    try:
        for start in range(0, len(batch), 16):
            x0 = judge.encode_images(pipeline, batch[start : start + 16])
            eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(judge.SEED + start))
            pipeline.unet(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, T, empty.expand(len(x0), -1, -1))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def _fit_predict(train: Array, labels: Array, test: Array) -> Array:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the iteration limit is the same for all
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=60))
        predicted: Array = model.fit(train, labels).predict(test)
    return predicted


def _class_inputs(maps: dict[str, torch.Tensor], images: torch.Tensor) -> dict[str, Array]:
    pooled = [F.adaptive_avg_pool2d(m, min(4, m.shape[-1])).flatten(1) for m in maps.values()]
    return {"features": torch.cat(pooled, 1).numpy(), "pixels": F.avg_pool2d(images, 4).flatten(1).numpy()}


def _cell_inputs(maps: dict[str, torch.Tensor], images: torch.Tensor) -> dict[str, Array]:
    grown = [F.interpolate(m, size=CELLS, mode="bilinear") for m in maps.values()]
    features = torch.cat(grown, 1).permute(0, 2, 3, 1).flatten(0, 2)
    pixels = F.pixel_unshuffle(images, 4).permute(0, 2, 3, 1).flatten(0, 2)
    return {"features": features.numpy(), "pixels": pixels.numpy()}


def mean_iou(truth: Array, guess: Array) -> float:
    """Mean over the classes that occur in `truth` of intersection over union, in [0, 1]."""
    classes = np.unique(truth)
    ious = [((truth == k) & (guess == k)).sum() / ((truth == k) | (guess == k)).sum() for k in classes]
    return float(np.mean(ious))


def linear_probes(
    pipeline: Any, train: int = 500, test: int = 250, cell_train: int = 120
) -> dict[str, judge.Figure]:
    """Class of one-object scenes, and class of each of 16x16 cells (mIoU), from features and from raw
    pixels."""
    batch = judge.scenes("held-out", train + test, count=1, offset=30_000)
    maps, images = activations(pipeline, batch), judge.as_images(batch)
    labels = np.array([s.label for s in batch])
    out = {}
    hits = {}
    for name, x in _class_inputs(maps, images).items():
        hits[name] = _fit_predict(x[:train], labels[:train], x[train:]) == labels[train:]
        out[f"probe_class_{name}"] = judge.share(int(hits[name].sum()), test, "accuracy")
    gain = hits["features"].astype(float) - hits["pixels"]
    out["probe_class_features_above_pixels"] = judge.mean_of(gain, "accuracy, paired")
    centres = np.stack([s.mask[2::4, 2::4] for s in batch])
    cells = centres.reshape(len(batch), -1)
    rows = slice(0, cell_train * CELLS * CELLS)
    for name, x in _cell_inputs(maps, images).items():
        guess = _fit_predict(x[rows][::2], cells[:cell_train].ravel()[::2], x[train * CELLS * CELLS :])
        out[f"probe_cells_{name}"] = _miou_figure(cells[train:], guess.reshape(test, -1))
    return out


def _miou_figure(truth: Array, guess: Array, draws: int = 200) -> judge.Figure:
    """mIoU with a percentile bootstrap over scenes."""
    rng = np.random.default_rng(0)
    picks = (rng.integers(len(truth), size=len(truth)) for _ in range(draws))
    values = [mean_iou(truth[p], guess[p]) for p in picks]
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return judge.Figure(
        mean_iou(truth, guess), low, high, len(truth), f"mIoU of {len(CLASSES)} classes and background"
    )
