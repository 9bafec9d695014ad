"""`gate screen --dry-run`: plan and cost from declared facts, without torch and without a run directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from image_files import fill
from typer.testing import CliRunner

from gate.cli import app
from gate.screening.config import make_config
from gate.technique import Cost, Technique

cli = CliRunner()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(*arguments: str) -> Any:
    result = cli.invoke(app, ["screen", "--dry-run", "--format", "json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_passes_and_calls_follow_from_what_is_declared(here: Path) -> None:
    told = plan(
        "--techniques", "freeu,noise-ensemble,ddim-inversion", "--samples", "10", "--timesteps", "50,100,300"
    )
    rows = {row["name"]: row for row in told["techniques"]}
    assert list(rows) == ["vanilla", "freeu", "noise-ensemble", "ddim-inversion"]
    # 10 images: a clean pass each, 3 timesteps, and 4 reconstructions in 5 steps
    assert rows["vanilla"]["passes"] == rows["freeu"]["passes"] == 10 + 30
    assert rows["vanilla"]["calls"] == 10 + 30 + 20
    assert rows["noise-ensemble"]["calls_per_image"] == 8
    assert rows["noise-ensemble"]["calls"] == 10 + 30 * 8 + 20 * 8
    assert rows["ddim-inversion"]["passes"] == 10 + 30, "its first seed stands for all"
    assert told["passes"] == sum(row["passes"] for row in rows.values())
    assert told["calls"] == sum(row["calls"] for row in rows.values())
    assert not list(here.iterdir())


def test_reconstructions_are_counted_without_what_starts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from gate.screening.config import ScreenConfig
    from gate.screening.cost import declared

    monkeypatch.setattr(Technique, "cost", Cost(per_image=2, per_pass=3, start=1))
    told = declared(Technique(), ScreenConfig(samples=8, seeds=1, image_samples=2, image_steps=4), 8, 1)
    assert told.calls == 8 * (1 + 2) + 8 * 3 + 2 * 4 * 2


def test_of_a_folder_as_many_images_as_there_are(here: Path) -> None:
    fill(here / "photos", 11)
    assert plan("--techniques", "freeu", "--images", "photos")["images"] == 11
    assert plan("--techniques", "freeu", "--images", "photos", "--samples", "9")["images"] == 9


def test_the_table_says_what_it_is(here: Path) -> None:
    result = cli.invoke(app, ["screen", "--dry-run", "--alpha-bar", "0.5,0.9"])
    flat = " ".join(result.stdout.split())
    assert result.exit_code == 0 and "calls/image" in flat and "noise-ensemble 8" in flat
    assert "64 images of scenes-held-out, alpha_bar 0.5, 0.9, 1 noise seed" in flat
    assert "Nothing was measured or written" in flat and not list(here.iterdir())


def test_a_screening_may_do_without_probes(here: Path) -> None:
    assert make_config({"probes": ""}).probes == ()
    assert plan("--techniques", "freeu", "--probes", "", "--samples", "8")["images"] == 8


def test_what_would_be_refused_is_refused(here: Path) -> None:
    for wrong in (["--techniques", "fre"], ["--images", "nowhere"], ["--seed", "-1"]):
        assert cli.invoke(app, ["screen", "--dry-run", *wrong]).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["screen", "--dry-run"], {}),
        ([], {"_GATE_COMPLETE": "complete_bash", "COMP_WORDS": "gate scr", "COMP_CWORD": "1"}),
        ([], {"_GATE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "gate screen --tech"}),
    ],
    ids=["plan", "bash", "zsh"],
)
def test_plan_and_completion_do_without_torch(
    arguments: list[str], environment: dict[str, str], here: Path
) -> None:
    import os

    code = (
        "import sys\nfrom gate.cli import main\nsys.argv = ['gate', *sys.argv[1:]]\n"
        "try: main()\nfinally: print('TORCH' if 'torch' in sys.modules else 'light', file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "light", done.stderr
    expected = "vanilla" if arguments else "screen" if "COMP_WORDS" in environment else "--techniques"
    assert expected in done.stdout
