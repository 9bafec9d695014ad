"""Cells whose truth is planted: technique k removes SHARES[k] of every head's error."""

from __future__ import annotations

import numpy as np

from gate.probe import label_counts
from gate.study.cell import Cell
from gate.study.plan import VANILLA, CellKey, StudySettings, draws_of
from gate.tasks import find_task

SETTINGS = StudySettings(
    domains=("held-out", "sketches", "cluttered", "unnamed"),
    timesteps=(300,),
    screening=128,
    sizes=(16, 32),
    draws=4,
    tasks=("classification", "classification-mlp"),
)
SHARES = {
    "prompt": 0.30,
    "prompt+controlnet": 0.42,
    "controlnet": 0.12,
    "lora": 0.06,
    "freeu": -0.10,
    "generic-prompt": 0.02,
    "noise-ensemble": 0.20,
    "shuffled-prompt": -0.25,
}
LEAKS = ("controlnet", "prompt+controlnet")
VANILLA_ERROR, TESTED = 0.5, 1000


def fabricated(key: CellKey, share: float, *, noise: float = 0.0, seed: int = 0) -> Cell:
    """pixel-brier removes half the share, with noise; brier says the opposite; eps is exact; linear says nothing."""
    accuracy = find_task("classification").measures[0]
    rng = np.random.default_rng([seed, *key.domain.encode(), *key.technique.encode()])
    wrong = round(TESTED * VANILLA_ERROR * (1 - share))
    labels = np.arange(TESTED) % 2
    guess = np.where(np.arange(TESTED) < wrong, 1 - labels, labels)
    columns = accuracy.columns(label_counts(labels, guess, 2)[:, None])[:, 0]
    draws = len(draws_of(SETTINGS))
    cell = Cell(key, leak="edges" if key.technique in LEAKS else "", calls=1.0)
    stray = noise * rng.normal(size=draws) * (key.technique != VANILLA)
    cell.drawn = {
        "pixel-brier": (0.3 * (1 - share / 2 - stray)).tolist(),
        "brier": [0.8 * (1 + share)] * draws,
        "linear": (0.6 + 0.05 * rng.random(draws)).tolist(),
        "pixel-linear": (0.7 + 0.05 * rng.random(draws)).tolist(),
        "logme-images": [-0.5 + share] * draws,
    }
    cell.single = {
        "shift cosine@own": np.tile(np.array([[0.2], [0.4]]) * (1 - share), (1, SETTINGS.screening)),
        "pass eps": np.full(SETTINGS.screening, 0.1 * (1 - share)),
        "carried": np.array([0.1, 5.0, 0.8 + share / 10]),
    }
    cell.truth = {"classification": np.stack([columns] * 2), "classification-mlp": np.stack([columns] * 2)}
    cell.seconds = {"pass": 0.01, "n=16": 0.2, "n=32": 0.4, "extraction of heads": 10.0}
    cell.seconds |= {"head classification": 1.0, "head classification-mlp": 3.0}
    return cell


def planted_cells(*, noise: float = 0.0, unnamed: bool = True) -> list[Cell]:
    """Three domains in full, and of the domain that differs by captions alone those that read some."""
    full = {VANILLA: 0.0, **SHARES}
    found = [
        fabricated(CellKey(d, 300, name), share, noise=noise)
        for d in ("held-out", "sketches", "cluttered")
        for name, share in full.items()
    ]
    readers = ("prompt", "prompt+controlnet", "shuffled-prompt") if unnamed else ()
    return found + [fabricated(CellKey("unnamed", 300, n), SHARES[n] / 2, noise=noise) for n in readers]
