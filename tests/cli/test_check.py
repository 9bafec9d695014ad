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
