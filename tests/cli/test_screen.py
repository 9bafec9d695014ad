from __future__ import annotations

import inspect
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import gate.screening
from gate.cli import app
from gate.cli.progress import reporting
from gate.cli.screen import screen
from gate.errors import (
    ConfigurationError,
    GateError,
    IncomparableError,
    MissingWeightsError,
    OutOfMemoryError,
    UsageError,
)
from gate.runs.directory import Run
from gate.screening import Interrupted, Screening
from gate.screening.config import ScreenConfig

cli = CliRunner()


@dataclass
class _Asked:
    """What the command asked of `gate.screening.screen`."""

    config: ScreenConfig | None = None
    run: Run | None = None
    error: BaseException | None = None

    def __call__(
        self, config: ScreenConfig, *, progress: Callable[..., None], log: Callable[[str], None]
    ) -> Any:
        self.config = config
        log("64 images of scenes-held-out on tiny")
        progress("vanilla", 0, 200)
        progress("prompt", 100, 200)
        if self.error is not None:
            raise self.error
        assert self.run is not None
        return Screening(self.run.path, self.run.results)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, run: Run) -> _Asked:
    quiet = run.results.model_copy(update={"skipped": run.results.skipped[:1]})
    fake = _Asked(run=Run(run.path, quiet))
    monkeypatch.setattr(gate.screening, "screen", fake)
    return fake


def test_every_field_of_the_config_is_a_flag_with_its_default() -> None:
    parameters = inspect.signature(screen).parameters
    assert set(parameters) - {"config", "where", "dry_run", "format", "quiet", "debug"} == set(
        ScreenConfig.model_fields
    )
    help_text = " ".join(cli.invoke(app, ["screen", "--help"]).output.split())
    for name, field in ScreenConfig.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        described = re.search(rf"{flag} (?!\.)(.*?)(?= --[a-z]| -q|$)", help_text)
        assert described, flag
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        if default is not None:
            assert f"[default: {default}]" in described[1], flag
        assert parameters[name].default is None, "a flag that is not given must not override --config"


def test_defaults_are_the_configs(asked: _Asked) -> None:
    assert cli.invoke(app, ["screen"]).exit_code == 0
    assert asked.config == ScreenConfig()


def test_flags_reach_the_config(asked: _Asked) -> None:
    flags = "--techniques prompt,freeu[b1=1.2,s1=0.9],!freeu --samples 16 --timesteps 50,100 --seeds 3 --layers up1"
    more = (
        "--metrics cka --probes linear --images photos --strength 0.5 --batch-size 4 --seed 7 --output runs/a"
    )
    result = cli.invoke(app, ["screen", *flags.split(), *more.split()])
    assert result.exit_code == 0, result.output
    config = asked.config
    assert config is not None
    assert config.techniques == ("prompt", "freeu[b1=1.2,s1=0.9]", "!freeu")
    assert (config.samples, config.timesteps, config.seeds, config.layers) == (16, (50, 100), 3, ("up1",))
    assert (config.metrics, config.probes, config.images) == (("cka",), ("linear",), "photos")
    assert (config.strength, config.batch_size, config.seed, config.output) == (0.5, 4, 7, "runs/a")


def test_flags_override_the_file(asked: _Asked, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("samples: 16\nseeds: 3\ntimesteps: [10, 20]\n", encoding="utf-8")
    assert cli.invoke(app, ["screen", "--config", str(file), "--seeds", "1"]).exit_code == 0
    assert asked.config == ScreenConfig(samples=16, seeds=1, timesteps=(10, 20))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--samples", "3"],
        ["--samples", "many"],
        ["--timesteps", "50,50"],
        ["--timesteps", "soon"],
        ["--batch-size", "big"],
        ["--config", "no-such-file.yaml"],
        ["--no-such-flag"],
        ["--format", "xml"],
    ],
)
def test_impossible_settings_exit_with_2_and_no_traceback(asked: _Asked, arguments: list[str]) -> None:
    result = cli.invoke(app, ["screen", *arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output and result.stdout == ""
    assert asked.config is None


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sampels: 16\n", encoding="utf-8")
    result = cli.invoke(app, ["screen", "--config", str(file)])
    assert result.exit_code == 2 and "sampels" in result.stderr


def test_data_on_stdout_progress_on_stderr(asked: _Asked) -> None:
    result = cli.invoke(app, ["screen"])
    assert "noise-ensemble" in result.stdout and "Run: " in result.stdout and "Winners: " in result.stdout
    assert "64 images" in result.stderr and "[ 50 %] prompt" in result.stderr
    assert "64 images" not in result.stdout


def test_quiet_says_nothing_on_stderr(asked: _Asked) -> None:
    assert cli.invoke(app, ["screen", "--quiet"]).stderr == ""


def test_json_is_the_whole_result(asked: _Asked, run: Run) -> None:
    result = cli.invoke(app, ["screen", "--format", "json"])
    read = json.loads(result.stdout)
    assert read["run"] == str(run.path)
    assert [r["name"] for r in read["ranking"]] == [r.name for r in run.results.ranking]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateError("odd"), 1),
        (UsageError("runs/a exists already"), 2),
        (ConfigurationError("the folder is empty"), 3),
        (IncomparableError("other samples"), 4),
        (MissingWeightsError("no weights"), 5),
        (OutOfMemoryError("too large"), 6),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("division by zero"), 1),
        (AssertionError(), 1),
    ],
)
def test_a_failure_is_one_sentence_and_its_code(asked: _Asked, error: BaseException, code: int) -> None:
    asked.error = error
    result = cli.invoke(app, ["screen", "--quiet"])
    assert result.exit_code == code
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert str(error) in result.stderr
    if not isinstance(error, (GateError, KeyboardInterrupt)):
        assert "--debug" in result.stderr and type(error).__name__ in result.stderr


def test_debug_shows_the_traceback_and_keeps_the_code(asked: _Asked) -> None:
    asked.error = MissingWeightsError("no weights")
    result = cli.invoke(app, ["screen", "--debug"])
    assert result.exit_code == 5 and "Traceback" in result.stderr


def test_ctrl_c_says_how_to_go_on(asked: _Asked) -> None:
    asked.error = Interrupted(Path("runs/a"))
    result = cli.invoke(app, ["screen", "--quiet"])
    assert result.exit_code == 130
    assert result.stderr == "Interrupted; finish it with: gate resume runs/a\n"


def test_a_failed_technique_is_told_and_exits_with_7(asked: _Asked, run: Run) -> None:
    asked.run = run
    result = cli.invoke(app, ["screen"])
    assert result.exit_code == 7
    assert "Failed odd: ValueError: odd. Run: gate check 'odd'" in result.stdout
    assert "Skipped lora: lora needs training. Run: gate fit lora" in result.stdout


def test_resume_finishes_a_run(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def resume(folder: Path, **_: Any) -> Screening:
        assert folder == Path("runs/a")
        return Screening(run.path, run.results)

    monkeypatch.setattr(gate.screening, "resume", resume)
    result = cli.invoke(app, ["resume", "runs/a", "--format", "csv"])
    assert result.exit_code == 7 and result.stdout.startswith("rank,name,")


def test_nothing_to_resume(tmp_path: Path) -> None:
    result = cli.invoke(app, ["resume", str(tmp_path)])
    assert result.exit_code == 2 and "nothing to resume" in result.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_with_a_percentage(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    before = threading.active_count()
    with reporting(quiet=False) as (progress, log):
        log("freeu[b1=1.2] is [bold]no markup")
        progress("freeu[b1=1.2]", 50, 100)
        progress("freeu[b1=1.2]", 100, 100)
        assert threading.active_count() == before, "a screening forks: no thread may be alive"
        shown = terminal.getvalue()
    assert "freeu[b1=1.2] is [bold]no markup" in shown
    assert "100%" in shown


def test_progress_elsewhere_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(quiet=False) as (progress, _):
        for done in range(1001):
            progress("prompt" if done % 7 else "measuring", done, 1000)
    assert len(capsys.readouterr().err.splitlines()) == 11
