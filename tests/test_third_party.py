"""A stranger's technique as its own distribution: found, checked, screened; and a broken one beside it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "third-party-technique"
GUIDE = ROOT / "docs" / "technique-guide.md"
SCREEN = (
    *("screen", "--techniques", "latent-flip,prompt+latent-flip", "--samples", "16", "--seeds", "1"),
    *("--timesteps", "50", "--quiet"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the example as pip installs it, and nothing else."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.fail("hatchling builds the example and is not installed: pip install 'gate-screen[test]'")
    target = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    command = (sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(EXAMPLE))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert list(target.glob("gate_latent_flip-*.dist-info")), "pip installed no distribution"
    return target


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a distribution whose technique raises when it is imported."""
    target = tmp_path_factory.mktemp("broken")
    (target / "gate_broken_flip.py").write_text("raise RuntimeError('no mirror on this machine')\n")
    facts = target / "gate_broken_flip-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: gate-broken-flip\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text("[gate.techniques]\nbroken-flip = gate_broken_flip:BrokenFlip\n")
    return target


def gate(
    *arguments: str, path: tuple[Path, ...], cwd: Path, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """`python -m gate ARGUMENTS`, see `python`."""
    return python("-m", "gate", *arguments, path=path, cwd=cwd, expect=expect)


def python(
    *arguments: str, path: tuple[Path, ...], cwd: Path, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that also looks into the folders of `path`."""
    python_path = os.pathsep.join(map(str, path))
    done = subprocess.run(
        (sys.executable, *arguments),
        env={**os.environ, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_an_installed_technique_is_listed_beside_ours(installed: Path, tmp_path: Path) -> None:
    rows = listed(gate("list", "techniques", "--format", "json", path=(installed,), cwd=tmp_path))
    assert rows["latent-flip"]["summary"] == "Average features over the latent and its mirror image."
    assert "prompt" in rows


@pytest.mark.slow
def test_it_keeps_the_contract_and_so_does_the_guide_s(installed: Path, tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (tmp_path / "told_timestep.py").write_text(text.split("```python\n")[1].split("```")[0], encoding="utf-8")
    code = (
        "from gate.testing import check_technique, load_class\n"
        "told = load_class('told_timestep.py::ToldTimestep')\n"
        "for technique in ('latent-flip', told):\n"
        "    check_technique(technique).raise_for_failures()\n"
    )
    python("-c", code, path=(installed,), cwd=tmp_path)


@pytest.mark.slow
def test_it_is_screened_with_a_broken_neighbour(installed: Path, broken: Path, tmp_path: Path) -> None:
    gate(*SCREEN, "--output", "run", path=(installed, broken), cwd=tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in results["ranking"]}
    assert set(rows) == {"latent-flip", "prompt+latent-flip"}
    assert results["skipped"] == []
    for row in rows.values():
        assert row["n"] == 16
        assert row["cost"]["calls"] == row["cost"]["per_pass"] == 2
        assert row["ci_low"] <= row["score"] <= row["ci_high"]
    assert rows["latent-flip"]["score"] != 0  # it did something


def test_a_broken_neighbour_is_listed_with_its_error(installed: Path, broken: Path, tmp_path: Path) -> None:
    done = gate("list", "techniques", "--format", "json", path=(installed, broken), cwd=tmp_path)
    rows = listed(done)
    assert "latent-flip" in rows
    assert "no mirror on this machine" in json.dumps(rows["broken-flip"]) + done.stderr


def test_a_broken_technique_is_refused_by_name(broken: Path, tmp_path: Path) -> None:
    done = gate("screen", "--techniques", "broken-flip", path=(broken,), cwd=tmp_path, expect=3)
    assert "gate-broken-flip" in done.stderr
    assert "no mirror on this machine" in done.stderr
    assert not (tmp_path / "runs").exists()
