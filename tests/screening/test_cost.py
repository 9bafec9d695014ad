"""How long a screening will take is said before its techniques start, from one count and one timed call."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import gate.screening.job
from gate.cli import app
from gate.screening import screen
from gate.screening.bench import prepare
from gate.screening.config import make_config
from gate.screening.cost import LONG, beforehand, duration
from tests.closed_form import ClosedForm, flat_samples

SETTINGS: dict[str, Any] = {
    **{"samples": 10, "timesteps": (50, 100, 300), "seeds": 2},
    **{"image_samples": 4, "image_steps": 5},
}
CALLS = (10 + 60 + 20) + (10 + 60 * 8 + 20 * 8)  # vanilla, and an ensemble of eight


def said(seconds: float, side: int = 512, names: tuple[str, ...] = ("noise-ensemble",)) -> str:
    backbone: Any = SimpleNamespace(device="cpu", image_size=side)
    return beforehand(backbone, names, make_config(SETTINGS), 10, seconds)


def test_calls_times_seconds() -> None:
    assert said(0.1) == (
        f"about 74 s before it is done: {CALLS} calls of the denoiser as declared, 0.1 s each on cpu at 512 px"
    )
    assert "about 18 s" in said(0.025) and "25 ms each" in said(0.025)


def test_what_takes_long_says_how_it_would_take_less() -> None:
    assert "shorter" not in said(0.99 * LONG / CALLS)
    long = said(1.01 * LONG / CALLS)
    assert long.endswith("; shorter with --image-size 256, fewer --samples or fewer --techniques")
    assert "--image-size 448" in said(60, side=900) and "12 h" in said(60, side=900)
    small = said(60, side=64)  # there is no smaller size to propose
    assert "--image-size" not in small and small.endswith(
        "shorter with fewer --samples or fewer --techniques"
    )


def test_a_strangers_cost_that_cannot_be_told_counts_for_nothing() -> None:
    assert said(1.0, names=("noise-ensemble", "no-such-technique")) == said(1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *(
            (0.2, "1 s"),
            (99.4, "99 s"),
            (100, "2 min"),
            (5900, "98 min"),
            (6000, "1 h 40 min"),
            (7200, "2 h"),
        ),
        *((36300, "10 h"), (172800, "2 days")),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("batch", [2, 16])
def test_the_pace_is_told_once_while_the_reference_is_made(batch: int) -> None:
    told: list[tuple[Any, int, float]] = []
    samples, backbone = flat_samples(), ClosedForm()
    config = make_config(
        {"samples": len(samples), "batch_size": batch, "timesteps": (1,), "layers": ("sum",)}
    )
    prepare(backbone, samples, config, [], [], paced=lambda *given: told.append(given))
    [(whose, images, seconds)] = told
    assert whose is backbone and images == len(samples) and 0 < seconds < 10


def test_a_screening_says_it_first_and_counts_as_the_plan_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--techniques",
        "freeu",
        "--samples",
        "8",
        "--timesteps",
        "50",
        "--seeds",
        "1",
        "--image-samples",
        "2",
    ]
    planned = CliRunner().invoke(app, ["screen", "--dry-run", "--format", "json", *arguments])
    lines: list[str] = []

    class Enough(Exception):
        """The techniques would start here."""

    def measure_all(*_: Any) -> Any:
        raise Enough

    monkeypatch.setattr(gate.screening.job, "_measure_all", measure_all)
    with pytest.raises(Enough):
        screen(
            techniques=["freeu"],
            samples=8,
            timesteps=[50],
            seeds=1,
            image_samples=2,
            probes=[],
            resamples=200,
            workers=1,
            output=str(tmp_path / "run"),
            log=lines.append,
        )
    [told] = [line for line in lines if "before it is done" in line]
    assert f": {json.loads(planned.stdout)['calls']} calls of the denoiser" in told and "at 64 px" in told
