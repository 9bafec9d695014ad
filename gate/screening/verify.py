"""Whether a run tells the truth: its files are what was written, and its numbers come out again.

What is measured again may differ by what kernels differ: in the last bits between one thread and two, or two machines,
and thirty layers of float32 make that 1e-5 or so of a feature's distance. Half precision keeps three digits to begin
with. Probes count positions, and one on the edge may fall to either side.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gate.errors import ConfigurationError, DamagedError
from gate.runs.directory import PICTURES, SCORES, open_run, plain, read_arrays, read_run
from gate.runs.schema import Results
from gate.runs.states import STATES
from gate.screening.attempt import Attempt
from gate.screening.config import make_config
from gate.screening.outcome import Log
from gate.screening.workers import attempts, choose_workers

if TYPE_CHECKING:
    from gate.screening.bench import Bench
    from gate.screening.measured import Measured

SHARE = 0.1  # of the techniques
SINGLE, HALF, COUNTED, COMPUTED = 1e-3, 5e-2, 1e-2, 1e-6  # what may differ, of the largest number of its kind


def verify(
    run: str | Path,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    log: Log = lambda _: None,
) -> list[str]:
    """What was checked, a line each. seed: of the techniques that are measured again.

    Raises UsageError where there is no finished run, DamagedError where a file was changed or a number does not come
    out again, ConfigurationError where weights or images are not those of the run any more.
    """
    from gate.screening.bench import open_bench
    from gate.screening.stored import unpack

    folder = Path(run)
    opened = open_run(folder)
    scores, facts = read_arrays(folder / SCORES)
    if not opened.sealed or "techniques" not in facts:
        raise DamagedError(f"{folder} carries no checksums (an older gate made it); screen again.")
    asked = read_run(folder)
    total = sum(a.size for a in scores.values())
    further = [name for name, there in ((PICTURES, opened.pictures), (STATES, opened.states)) if there]
    names = ", ".join(["run.json", "results.json", f"{SCORES} ({total:,} numbers)", *further])
    lines = [f"Files: {names} are as gate wrote them, and of one run."]
    bench = open_bench(make_config(asked["config"]), log=log)
    found = {"weights": bench.backbone.fingerprint(), "samples": bench.samples.fingerprint()}
    for what, name in (("weights", "weights"), ("samples", "images")):
        if found[what] != asked["hashes"][what]:
            raise ConfigurationError(
                f"The files of {folder} are sound, but its {name} are not those on this machine any more, so nothing "
                "can be measured again."
            )
    measured = unpack(facts["techniques"], scores, opened.pictures, opened.states)
    lines.append(_ranked_anew(bench, measured, opened.results))
    drawn = sorted(random.Random(seed).sample(sorted(measured), math.ceil(SHARE * len(measured))))
    count, largest = 0, 0.0
    anew = attempts(bench, drawn, choose_workers(bench, len(drawn)), lambda *_: None)
    for done, tried in enumerate(anew, 1):
        numbers, difference = _measured_anew(bench, tried, measured[tried.name])
        count, largest = count + numbers, max(largest, difference)
        progress(tried.name, done, len(drawn))
    lines.append(
        f"Measured again: {len(drawn)} of {len(measured)} techniques ({', '.join(drawn)}; seed {seed}), {count:,} "
        f"numbers. They differ by {largest:.1e} at most: of the largest number of their kind, where "
        f"{_allowed(bench):g} may be, and of a probe's counts, where {COUNTED:g} may be."
    )
    return lines


def _ranked_anew(bench: Bench, measured: Mapping[str, Measured], told: Results) -> str:
    """Scores make the same ranking again, intervals and all."""
    from gate.screening.results import assemble

    skipped = [s.model_dump() for s in told.skipped]
    made, _, _ = assemble(bench, measured, skipped)
    again = Results.model_validate(plain({**told.model_dump(), **made}))
    ours, theirs = (r.model_dump(mode="json", exclude={"created", "gate_version"}) for r in (again, told))
    pairs = list(_leaves(ours, theirs, ""))
    for place, a, b in pairs:
        numbers = all(isinstance(v, (int, float)) for v in (a, b))
        if not (math.isclose(a, b, rel_tol=COMPUTED, abs_tol=COMPUTED) if numbers else a == b):
            raise DamagedError(
                f"results.json says {b!r} for {place}, and the scores make it {a!r}; screen again."
            )
    return f"Ranked again from the scores: all {len(pairs):,} facts of the ranking come out the same."


def _leaves(a: Any, b: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of what stands at the same place."""
    if isinstance(b, dict) and isinstance(a, dict):
        for key in b:
            yield from _leaves(a.get(key), b[key], f"{place}.{key}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _leaves(x, y, f"{place}.{i}")
    else:
        yield place, a, b


def _measured_anew(bench: Bench, tried: Attempt, told: Measured) -> tuple[int, float]:
    """How many numbers were measured again, and the largest difference. Raises DamagedError where it is too large."""
    from gate.screening.measured import TABLES

    name, made = tried.name, tried.measured
    if made is None:
        raise ConfigurationError(f"{name} could not be measured again: {tried.reason}.")
    allowed, count, largest = _allowed(bench), 0, 0.0
    for table in TABLES.values():
        for key, theirs in getattr(told, table).items():
            ours = getattr(made, table).get(key)
            counted = table in ("counts", "refit")
            difference, limit = _difference(ours, theirs, counted), COUNTED if counted else allowed
            if not difference <= limit:
                raise DamagedError(
                    f"{key} of {name} does not come out again: it differs by {difference:.1e}, "
                    f"and {limit:g} may be (docs/architecture.md); screen again, or look for what changed on this "
                    "machine."
                )
            count, largest = count + theirs.size, max(largest, difference)
    if not math.isclose(made.calls, told.calls, rel_tol=COMPUTED):
        raise DamagedError(
            f"{name} makes {made.calls:g} calls, and the run says {told.calls:g}; screen again."
        )
    return count, largest


def _difference(ours: NDArray[Any] | None, theirs: NDArray[Any], counted: bool) -> float:
    """The largest difference over the largest value; of what a probe counts, the share of it that lies elsewhere.

    Infinity where the two cannot be compared.
    """
    if ours is None or ours.shape != theirs.shape:
        return math.inf
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return math.inf
    known = np.isfinite(b)
    gap, size = np.abs(a - b)[known], np.abs(b)[known]
    if counted:
        return float(gap.sum() / max(size.sum(), np.finfo(np.float32).tiny))
    return float(gap.max(initial=0.0) / max(size.max(initial=0.0), np.finfo(np.float32).tiny))


def _allowed(bench: Bench) -> float:
    return SINGLE if "32" in str(bench.backbone.dtype) else HALF
