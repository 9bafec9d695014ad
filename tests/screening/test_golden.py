"""A small screening of `tiny`, number by number: any change of what is measured or ranked shows here.

Where a change is meant, write the numbers anew, and say in the changelog which ones changed:

    GATE_GOLDEN=write python -m pytest tests/screening/test_golden.py

Kernels differ in the last bits between platforms, and thirty layers of float32 make that 1e-5 or so of a feature's
distance; 1e-3 leaves room for it. A share of vanilla's error is a small difference of such numbers, so it may be off by
2e-3 outright. Probes count positions, and one on the edge may fall to either side: theirs may be off by 1e-2.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gate.runs.schema import Results
from gate.screening import Screening, screen

GOLDEN = Path(__file__).with_name("golden.json")
RELATIVE, SHARE, COUNTED = 1e-3, 2e-3, 1e-2


def numbers(results: Results) -> dict[str, Any]:
    """What a screening says, without times and without the order of the ranking, where ties may trade places."""
    vanilla = results.vanilla
    found: dict[str, Any] = {
        "vanilla": {"metrics": vanilla.metrics, "probes": vanilla.probes},
        "axes": {
            "timestep": results.axes.timestep,
            "layer": results.axes.layer,
            "sample": results.axes.sample,
        },
    }
    for row in results.ranking:
        found[row.name] = {
            "score": [row.score, row.ci_low, row.ci_high],
            "metrics": {k: [v.value, v.ci_low, v.ci_high] for k, v in row.metrics.items()},
            "probes": {k: [v.value, v.ci_low, v.ci_high] for k, v in row.probes.items()},
            "images": {k: v and v.value for k, v in row.images.items()},
            "feature_scale": row.feature_scale,
            "calls": row.cost.calls,
            "facts": [row.negative_control, row.leak],
        }
    return found


def near(value: Any, golden: Any, place: tuple[str, ...] = ()) -> list[str]:
    """Where the two differ beyond the tolerance of their place, a line each."""
    where = ".".join(place)
    if isinstance(golden, dict):
        if not isinstance(value, dict) or set(value) != set(golden):
            return [f"{where}: {sorted(value)} and not {sorted(golden)}"]
        return [line for k in golden for line in near(value[k], golden[k], (*place, k))]
    if isinstance(golden, list):
        if len(value) != len(golden):
            return [f"{where}: {len(value)} and not {len(golden)} values"]
        return [line for i, (v, g) in enumerate(zip(value, golden)) for line in near(v, g, (*place, str(i)))]
    if isinstance(golden, float) and isinstance(value, float):
        loose = COUNTED if "probes" in place or "score" in place else 0.0 if place[0] == "vanilla" else SHARE
        return (
            []
            if value == pytest.approx(golden, rel=RELATIVE, abs=loose)
            else [f"{where}: {value} != {golden}"]
        )
    return [] if value == golden else [f"{where}: {value!r} != {golden!r}"]


def test_a_small_screening_gives_the_numbers_it_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Screening, "plot", lambda self: [])  # figures have their own tests
    done = screen(
        techniques=("prompt", "shuffled-prompt", "freeu"),
        backbone="tiny",
        samples=14,  # a sample a class, which the probes need
        timesteps=(50,),
        seeds=1,
        image_samples=2,
        image_steps=2,
        folds=2,
        resamples=200,
        workers=1,
        batch_size=8,
        device="cpu",
        output=str(tmp_path / "run"),
    )
    found = json.loads(json.dumps(numbers(done.results)))
    if os.environ.get("GATE_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert not done.results.skipped
    assert near(found, json.loads(GOLDEN.read_text(encoding="utf-8"))) == []


def test_a_change_of_numbers_shows() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for path, change in (
        (("vanilla", "metrics", "cka"), 1.002),
        (("freeu", "feature_scale"), 1.01),
        (("prompt", "calls"), 2.0),
    ):
        other = json.loads(json.dumps(golden))
        part = other
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] *= change
        assert len(near(other, golden)) == 1
