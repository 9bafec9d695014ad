"""The truth: heads trained in full on a technique's features, and what each gets right on images it never saw."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from gate.study.plan import StudySettings
from gate.study.pool import Pool
from gate.tasks import create_task
from gate.tasks.stem import Features

Array = npt.NDArray[Any]


def train_heads(
    settings: StudySettings, pool: Pool, train: Features, test: Features
) -> tuple[dict[str, Array], dict[str, float]]:
    """{task: columns (seeds, test samples, m) of its primary measure}, and seconds of one training by task."""
    truth: dict[str, Array] = {}
    seconds: dict[str, float] = {}
    for name in settings.tasks:
        task = create_task(name)
        began = time.perf_counter()
        found = []
        for seed in range(settings.head_seeds):
            head = task.train(train, pool.train, seed=seed)
            counts = np.asarray(task.judge(head, test, pool.test))
            found.append(task.primary.columns(counts[:, None])[:, 0])
        truth[task.name] = np.stack(found)
        seconds[f"head {task.name}"] = (time.perf_counter() - began) / settings.head_seeds
    return truth, seconds
