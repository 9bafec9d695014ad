"""`gate check`: techniques, metrics and probes, by name and in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gate.cli import app

cli = CliRunner()


def test_check_prints_each_invariant() -> None:
    result = cli.invoke(app, ["check", "generic-prompt"])
    assert result.exit_code == 0, result.stderr
    assert (
        "detaching restores the backbone" in " ".join(result.stdout.split()) and "FAILED" not in result.stdout
    )


@pytest.mark.parametrize(
    ("name", "seen"),
    [("cosine", "scale_invariant is true"), ("linear", "features that hold the truth beat noise")],
)
def test_check_a_metric_and_a_probe(name: str, seen: str) -> None:
    result = cli.invoke(app, ["check", name, "--format", "json"])
    assert result.exit_code == 0, result.stderr
    findings = json.loads(result.stdout)
    assert seen in {f["name"] for f in findings} and all(f["ok"] for f in findings)


def test_check_a_metric_in_a_file_that_is_turned_round(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from gate import Metric\n"
        "class Mine(Metric):\n"
        "    name, summary, source, unit, weakness = 'mine', 'a likeness', 's', 'u', 'w'\n"
        "    def shift(self, features, reference):\n"
        "        return 1 / (1 + (features - reference).square().mean(dim=(1, 2, 3)))\n",
        encoding="utf-8",
    )
    result = cli.invoke(app, ["check", f"{file}::Mine"])
    assert result.exit_code == 3 and "the direction is the one stated" in result.stderr


def test_check_a_class_in_a_file_that_breaks_the_contract(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from gate import Technique\n"
        "@dataclass(kw_only=True)\n"
        "class Mine(Technique):\n"
        "    name = 'mine'\n"
        "    summary = 'Calls twice and declares one.'\n"
        "    def denoise(self, request, call_next):\n"
        "        call_next(request)\n"
        "        return call_next(request)\n",
        encoding="utf-8",
    )
    result = cli.invoke(app, ["check", f"{file}::Mine", "--format", "json"])
    assert result.exit_code == 3
    findings = {r["name"]: r["ok"] for r in json.loads(result.stdout)}
    assert findings["is finite"] and not findings["declared cost is the counted cost"]
    assert "mine breaks the contract: declared cost" in result.stderr


@pytest.mark.parametrize(("what", "code"), [("nobody", 2), ("no-such.py::Mine", 2)])
def test_check_what_does_not_exist(what: str, code: int) -> None:
    assert cli.invoke(app, ["check", what]).exit_code == code


ENDS = """import os, signal, sys
from dataclasses import dataclass
from gate import Metric, Technique
{top}
@dataclass(kw_only=True)
class Mine(Technique):
    name = "mine"
    summary = "It ends the process."
    def __post_init__(self):
        {init}
    def fit(self, backbone, samples):
        {fit}
    def denoise(self, request, call_next):
        {run}
        return call_next(request)
class Distance(Metric):
    name, summary, source, unit, weakness = "distance", "It ends the process.", "s", "u", "w"
    def shift(self, features, reference):
        {run}
"""


@pytest.mark.usefixtures("tiny")  # so that the forks find everything imported
@pytest.mark.parametrize(
    ("where", "how", "what"),
    [
        ("top", "os._exit(0)", "Mine"),
        ("top", "sys.exit(0)", "Mine"),
        ("init", "os._exit(0)", "Mine"),
        ("init", "sys.exit(0)", "Mine"),
        ("fit", "os._exit(0)", "Mine"),
        ("run", "os._exit(0)", "Mine"),
        ("run", "sys.exit(0)", "Mine"),
        ("run", "os.kill(os.getpid(), signal.SIGKILL)", "Mine"),
        ("run", "os._exit(0)", "Distance"),
        ("run", "sys.exit(0)", "Distance"),
    ],
)
def test_a_check_that_was_not_made_never_ends_with_0(where: str, how: str, what: str, tmp_path: Path) -> None:
    places = dict.fromkeys(("top", "init", "fit", "run"), "pass") | {where: how}
    file = tmp_path / "mine.py"
    file.write_text(ENDS.format(**places), encoding="utf-8")
    result = cli.invoke(app, ["check", f"{file}::{what}"])
    assert result.exit_code == 3, result.output
    if how == "sys.exit(0)":
        assert "SystemExit: 0" in result.output
    else:
        fate = "was ended by SIGKILL" if "kill" in how else "ended the process (exit code 0)"
        assert f"{file}::{what} {fate} while it was checked" in " ".join(result.stderr.split())
        assert not result.stdout


def test_what_a_plug_in_prints_while_it_is_checked_is_not_the_report(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(ENDS.format(top="print('hello')", init="print('hi')", fit="pass", run="pass"))
    result = cli.invoke(app, ["check", f"{file}::Mine", "--format", "json"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)) > 5


@pytest.mark.usefixtures("tiny")
def test_facts_of_a_wrong_type_are_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        ENDS.format(init="pass\n    variants = 7", **dict.fromkeys(("top", "fit", "run"), "pass"))
    )
    result = cli.invoke(app, ["check", f"{file}::Mine", "--format", "json"])
    assert result.exit_code == 3
    found = {f["name"]: f for f in json.loads(result.stdout)}
    assert "variants must map names to settings" in found["states its facts"]["detail"]


@pytest.mark.usefixtures("tiny")
def test_features_of_another_shape_are_named(tmp_path: Path) -> None:
    """The screen that follows fails on them, so the check may not pass."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from gate import Technique\n"
        "@dataclass(kw_only=True)\n"
        "class Mine(Technique):\n"
        "    name, summary = 'mine', 'It drops a row of every feature.'\n"
        "    def denoise(self, request, call_next):\n"
        "        response = call_next(request)\n"
        "        return response.with_(features={k: f[:, :, 1:] for k, f in response.features.items()})\n",
        encoding="utf-8",
    )
    result = cli.invoke(app, ["check", f"{file}::Mine", "--format", "json"])
    assert result.exit_code == 3 and "features have the backbone's shapes" in result.stderr
    found = {f["name"]: f["detail"] for f in json.loads(result.stdout) if not f["ok"]}
    assert "mid is (128, 1, 2) at t = 50, and the backbone's is (128, 2, 2)" in str(found)
