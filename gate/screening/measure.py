"""Measuring one technique: its fit, every pass of it, and the numbers that they fold into."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from gate.passes import stream
from gate.screening.bench import Bench
from gate.screening.measured import Measured, Tally
from gate.technique import Technique

Tick = Callable[[int], None]


def measure(
    bench: Bench, technique: Technique, tick: Tick = lambda done: None, *, batch_size: int = 0
) -> Measured:
    """All numbers of one technique. tick(rows) is called as passes finish. Raises what the technique raises."""
    start = time.perf_counter()
    technique.fit(bench.backbone, bench.samples)
    fit_seconds = time.perf_counter() - start
    measured = tally(bench, technique, tick, batch_size=batch_size).measured()
    measured.fit_seconds = fit_seconds
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
