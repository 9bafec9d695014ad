"""The folder of the latent cache: what goes first, what is never touched, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gate.cli.cache import cache as cache_command
from gate.cli.failures import guarded
from gate.extraction.cache_folder import ABOUT, clear, default_folder, groups, make_room


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


@pytest.fixture
def stocked(tmp_path: Path) -> Iterator[Path]:
    """Three files of 1000 bytes in two groups, used an hour apart; what is not the cache's lies among them."""
    folder = tmp_path / "cache"
    for group, name, hour in (("a" * 32, "3-aa", 1), ("a" * 32, "2-bb", 3), ("b" * 32, "10-cc", 2)):
        file = folder / group / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(1000))
        os.utime(file, (3600 * hour, 3600 * hour))
        about = {"backbone": "tiny", "dtype": "float32", "device": "cpu", "threads": "2", "image_size": "64"}
        (file.parent / ABOUT).write_text(json.dumps(about))
    (folder / "mine").mkdir()
    (folder / "mine" / "1-aa.safetensors").touch()
    (folder / ("a" * 32) / "notes.txt").touch()
    yield folder


def test_what_was_not_used_for_longest_goes_first(stocked: Path) -> None:
    assert make_room(stocked, 3000) == 3000 and len(shards(stocked)) == 4
    assert make_room(stocked, 2500) == 2000
    assert [f.name for f in shards(stocked)] == ["2-bb.safetensors", "10-cc.safetensors", "1-aa.safetensors"]
    assert make_room(stocked, 1500) == 1000
    assert (stocked / ("a" * 32) / "2-bb.safetensors").exists() and (
        stocked / "mine/1-aa.safetensors"
    ).exists()


def test_half_written_files_of_the_dead_are_swept_and_those_of_the_living_stay(stocked: Path) -> None:
    old, new = (stocked / ("b" * 32) / f"4-{k}.safetensors.tmp" for k in ("dd", "ee"))
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    make_room(stocked, 1 << 40)
    assert not old.exists() and new.exists() and sum(g.latents for g in groups(stocked)) == 15


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GATE_CACHE", raising=False)
    assert default_folder().parts[-2:] == ("gate", "latents") and default_folder().is_absolute()
    monkeypatch.setenv("GATE_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "latents"


# The command


def gate(*arguments: Any) -> Any:
    app = typer.Typer()
    app.command("cache")(guarded(cache_command))
    app.command("other")(lambda: None)  # so that the command keeps its name
    return CliRunner().invoke(app, ["cache", *map(str, arguments)])


def test_info_says_how_much_of_what_lies_where(stocked: Path) -> None:
    done = gate("info", "--folder", stocked)
    assert done.exit_code == 0, done.output
    flat = " ".join(done.output.split())
    assert "15 latents, 3 KB, in " in flat and "float32, cpu, 64 px, 2 threads" in flat
    rows = json.loads(gate("info", "--folder", stocked, "--format", "json").output)
    assert [(r["group"][0], r["latents"], r["bytes"]) for r in rows] == [("a", 5, 2000), ("b", 10, 1000)]


def test_clear_says_what_it_removed_and_touches_nothing_else(
    stocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dry = gate("clear", "--dry-run", "--folder", stocked)
    assert "15 latents would be deleted, 3 KB" in dry.output and len(shards(stocked)) == 4
    monkeypatch.setenv("GATE_CACHE", str(stocked.parent))
    stocked.rename(stocked.parent / "latents")
    done = gate("clear")
    assert "15 latents deleted, 3 KB" in done.output
    left = sorted(f.relative_to(stocked.parent).as_posix() for f in stocked.parent.rglob("*") if f.is_file())
    assert left == [f"latents/{'a' * 32}/notes.txt", "latents/mine/1-aa.safetensors"]
    assert "is empty" not in done.output and "0 latents" in gate("info").output
    assert clear(stocked.parent / "nowhere") == []


def test_no_cache_and_wrong_arguments_are_a_sentence(tmp_path: Path) -> None:
    assert "The latent cache is empty" in gate("info", "--folder", tmp_path / "none").output
    (tmp_path / "file").touch()
    wrong = gate("clear", "--folder", tmp_path / "file")
    assert wrong.exit_code == 2 and "is a file" in wrong.output
    assert gate("info", "--dry-run", "--folder", tmp_path).exit_code == 2


def test_the_command_needs_no_torch() -> None:
    heavy = "[name in sys.modules for name in ('torch', 'numpy')]"
    code = f"import sys, gate.cli.cache, gate.extraction.cache_folder; print(*{heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
