"""`gate fit` through the command: what it says to do next, its card, and what a failure leaves behind."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from image_files import fill
from typer.testing import CliRunner

import gate.fit.loop
import gate.screening
from gate.cli import app
from gate.errors import GateError
from gate.fit import FitConfig
from gate.fit.report import fit_command, screen_command
from gate.fit.textual_inversion import TextualInversionTrainer
from gate.registry import create_technique
from gate.screening.config import ScreenConfig

cli = CliRunner()
FAST = ["--samples", "10", "--steps", "1", "--batch-size", "2", "--rank", "1", "--sheet", "0"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def understood(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration that a printed command asks for, as a shell and the command line read it."""
    seen: list[Any] = []

    def reached(config: Any, **_: Any) -> None:
        seen.append(config)
        raise GateError("that is all")

    monkeypatch.setattr(gate.fit.loop, "fit", reached)
    monkeypatch.setattr(gate.screening, "screen", reached)
    program, *arguments = shlex.split(command)
    result = cli.invoke(app, arguments)
    assert program == "gate" and len(seen) == 1, result.output
    return seen[0]


@pytest.mark.slow
def test_a_fit_says_what_to_do_next_and_its_card_can_be_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(here / "my photos", 10)
    done = cli.invoke(app, ["fit", "lora", "--images", "my photos", "--output", "out, put", *FAST])
    assert done.exit_code == 0, done.output
    asked = understood(done.stdout.partition("Screen it: ")[2].strip(), monkeypatch)
    assert isinstance(asked, ScreenConfig) and asked.images == "my photos"
    assert [create_technique(name).name for name in asked.techniques] == list(asked.techniques)
    assert create_technique(asked.techniques[0]).settings["weights"] == "out, put"
    card = (here / "out, put" / "card.md").read_text()
    command = re.search(r"Fitted by `(.*?)` in", card)
    assert command
    (here / "out, put").rename(here / "moved")
    again = understood(command[1], monkeypatch)
    assert again == FitConfig(
        name="lora", images="my photos", output="out, put", samples=10, steps=1, batch_size=2, rank=1, sheet=0
    )


def test_every_setting_of_a_fit_can_be_given_to_its_command(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(here / "photos", 10)
    (here / "captions.csv").write_text("file,caption\n")
    config = FitConfig(
        name="textual-inversion", images="photos", captions="captions.csv", samples=12, held_out=0.3, steps=7,
        batch_size=2, rank=3, alpha=4.5, rate=1e-5, text_rate=0.25, control="depth", token="<a b>", vectors=2,
        check_every=9, sheet=2, seed=5, device="cpu", dtype="bfloat16", output="out", smoothness=0.5, shared_below=60,
        shared_intervals=3,
    )  # fmt: skip
    assert set(FitConfig.model_fields) - set(config.model_dump(exclude_defaults=True)) == {"backbone", "data"}
    assert understood(fit_command(config), monkeypatch) == config
    assert "--captions captions.csv" in screen_command(config)
    awkward = config.model_copy(update={"output": "out, put"})
    asked = understood(screen_command(awkward), monkeypatch)
    assert asked.images == "photos" and asked.captions == "captions.csv"
    shared, own = create_technique(asked.techniques[0]).settings.values()
    assert own["weights"] == "out, put" and shared == {"threshold": 60, "intervals": 3}
    assert "[weights=out]" in screen_command(config), "quoted only where it must be"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["lora", "--images", "few"], 3, "has 3 readable samples"),
        (["textual-inversion", "--data", "scenes-trained", "--vectors", "500"], 2, "vectors; give "),
        (["controlnet", "--data", "scenes-trained", "--control", "cany"], 2, "choose canny"),
    ],
)
def test_a_failed_fit_leaves_nothing_in_the_way(
    arguments: list[str], code: int, said: str, here: Path
) -> None:
    fill(here / "few", 3)
    result = cli.invoke(app, ["fit", *arguments, "--output", "out", "--quiet"])
    assert result.exit_code == code and said in result.stderr and len(result.stderr.splitlines()) == 1, (
        result.output
    )
    assert not (here / "out").exists()


def test_a_fit_that_is_stopped_before_its_first_checkpoint_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gate.fit.loop, "_material", stopped)
    result = cli.invoke(app, ["fit", "lora", "--data", "scenes-trained", "--output", "out", *FAST])
    assert result.exit_code == 130 and not (here / "out").exists()


def test_a_rate_that_explodes_does_not_block_the_corrected_command(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TextualInversionTrainer.loss
    monkeypatch.setattr(TextualInversionTrainer, "loss", lambda self, *args: real(self, *args) * float("nan"))
    command = ["fit", "textual-inversion", "--data", "scenes-trained", "--output", "out", *FAST]
    result = cli.invoke(app, command)
    assert result.exit_code == 3 and "lower the rate" in result.stderr and not (here / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "float16"], "'dtype' is wrong: input should be 'float32' or 'bfloat16', got 'float16'"),
        (["--seed", "-1"], "'seed' is wrong"),
        (["--images", ""], "'images' is wrong: it is empty"),
        (["--images", "photos"], "--images DIR, or a named data set"),
        (["--output", "z" * 300], "too long a path"),
        (["--rate", "inf"], "'rate' is wrong"),
    ],
)
def test_wrong_settings_of_a_fit_are_one_sentence(arguments: list[str], said: str, here: Path) -> None:
    command = ["fit", "lora", "--data", "scenes-trained", "--output", "out", *arguments]
    result = cli.invoke(app, command)
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(here.iterdir())
