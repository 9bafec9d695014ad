"""Measuring one technique: its fit, every pass of it, and the numbers that they fold into."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from gate.carried import unseen
from gate.composition import Composition
from gate.passes import stream
from gate.plugins import is_ours
from gate.runs.states import packed
from gate.screening.bench import Bench
from gate.screening.measured import Measured, Tally
from gate.technique import Technique

Tick = Callable[[int], None]


def measure(
    bench: Bench, technique: Technique, tick: Tick = lambda done: None, *, batch_size: int = 0
) -> Measured:
    """All numbers of one technique. tick(rows) is called as passes finish. Raises what the technique raises."""
    start = time.perf_counter()
    technique.fit(bench.backbone, technique.visible(bench.samples))
    fit_seconds = time.perf_counter() - start
    state = packed(technique.state(), technique.name)
    measured = tally(bench, technique, tick, batch_size=batch_size).measured()
    measured.fit_seconds, measured.state = fit_seconds, state
    if not ours(technique):  # ours are asked by their own tests
        found = unseen(bench.plan(technique, batch_size))
        measured.unseen = np.array(dataclasses.astuple(found), np.float32)
    return measured


def tally(
    bench: Bench,
    technique: Technique,
    tick: Tick = lambda done: None,
    *,
    batch_size: int = 0,
    rows: slice | None = None,
) -> Tally:
    """The passes of a fitted technique over some of the samples, folded. rows: of the bench's samples."""
    plan = bench.plan(technique, batch_size).sliced(rows or slice(None))
    found = Tally(bench, plan)
    weight = bench.config.seeds // len(plan.seeds)
    with contextlib.closing(stream(plan, memo=bench.memo, reference=bench.reference)) as passes:
        for passed in passes:
            found.add(passed)
            if not passed.is_reference:
                tick(len(passed.request.batch) * weight)
    return found


def ours(technique: Technique) -> bool:
    """Whether all of it is shipped with gate."""
    parts = technique.parts if isinstance(technique, Composition) else (technique,)
    return all(is_ours(type(part)) for part in parts)
