"""A package full of broken plug-ins beside ours: every command works, and says which they are and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAD = """from dataclasses import dataclass
from gate import Technique
@dataclass(kw_only=True)
class It(Technique):
    name = {name!r}
    summary = "A stranger's."
"""
DIES = "    def denoise(self, request, call_next):\n        raise RuntimeError('the stranger was asked')\n"
# entry point: (what is in its class or module, what is said of it)
STRANGERS = {
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "seven": ("    variants = 7\nprint('hello')", "variants must map names to settings"),
    "nothing": ("    summary = None", "summary must be one line of text"),
    "a+b": ("", "does not read on the command line"),
    "x-[bold red]": ("", "does not read on the command line"),
    "vanilla": ("", "is reserved"),
    "../x": ("", "does not read on the command line"),
    "guidance-cfg": (DIES, "is a variant of gate.techniques.guidance:Guidance of gate-screen"),
    "leaves": ("    def __post_init__(self):\n        raise SystemExit(0)", "SystemExit: 0"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    points = []
    for i, (name, (source, _)) in enumerate(STRANGERS.items()):
        (folder / f"stranger_{i}.py").write_text(HEAD.format(name=name) + source + "\n", encoding="utf-8")
        points.append(f"{name} = stranger_{i}:It")
    (folder / "stranger_metric.py").write_text("raise KeyboardInterrupt\n")
    facts = folder / "strangers-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 0.1.0\n")
    also = "".join(f"[gate.{kind}]\nodd = stranger_metric:It\n" for kind in ("metrics", "probes", "families"))
    (facts / "entry_points.txt").write_text("[gate.techniques]\n" + "\n".join(points) + "\n" + also)
    return folder


def gate(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "gate", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=path,
        timeout=300,
    )


def test_each_is_listed_with_its_reason(path: Path) -> None:
    done = gate(path, "list", "techniques", "--format", "json")
    assert done.returncode == 0, done.stderr
    errors: dict[str, list[str]] = {}
    for row in json.loads(done.stdout):
        if "error" in row:
            errors.setdefault(row["name"], []).append(row["error"])
    assert set(errors) == set(STRANGERS)
    for name, (_, why) in STRANGERS.items():
        assert len(errors[name]) == 1 and why in errors[name][0], (name, errors[name])
    table = gate(path, "list", "techniques")
    assert table.returncode == 0 and "x-[bold red]" in table.stdout and "BROKEN (strangers)" in table.stdout
    assert table.stdout.count("guidance-cfg") >= 2  # ours, and the claim that came too late


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "list metrics",
        "list probes",
        "list backbones",
        "list layers",
        "describe freeu",
        "describe prompt+guidance-cfg",
    ],
)
def test_no_command_is_taken_down(path: Path, command: str) -> None:
    done = gate(path, *command.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_doctor_names_them_all(path: Path) -> None:
    done = gate(path, "doctor", "--format", "json")
    assert done.returncode == 3, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    named = [f"technique {name}" for name in STRANGERS if name != "leaves"]
    for name in (*named, "metric odd", "probe odd", "family odd"):
        assert rows[name]["state"] == "broken", name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STRANGERS if name != "guidance-cfg"])
def test_one_that_is_broken_is_refused_by_its_name(path: Path, name: str) -> None:
    for command in (("check", name), ("screen", "--techniques", name)):
        done = gate(path, *command)
        said = [
            line for line in done.stderr.splitlines() if line != "hello"
        ]  # what one of them prints at import
        assert done.returncode in (2, 3) and len(said) == 1 and said[0].startswith("gate: "), (command, done)
        assert "this is a bug" not in said[0], (command, done)


@pytest.mark.slow
def test_our_variant_is_screened_alone_and_inside_compositions(path: Path, tmp_path: Path) -> None:
    names = "guidance-cfg,prompt+guidance-cfg"
    quick = ("--samples", "16", "--seeds", "1", "--timesteps", "50", "--quiet", "--format", "json")
    done = gate(path, "screen", "--techniques", names, *quick, "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert not found["skipped"] and "the stranger was asked" not in done.stdout + done.stderr
