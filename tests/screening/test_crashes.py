"""A run that is killed at any write, or whose disk is full at any byte, can be finished and gives the same numbers.

Each attempt is a fork of this process: it is really killed, really refused by the system, and dear imports are shared.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gate.cli import app
from gate.report import figures
from gate.runs.directory import create_directory, open_run

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forks, limits and mounts of Linux"
)
FLAGS = (
    "--techniques freeu,prompt --samples 14 --seeds 1 --timesteps 50 --image-samples 2 --image-steps 2 --folds 2 "
    "--resamples 200 --workers 1 --device cpu --quiet"
)
Outcome = tuple[int, str]  # exit code and what was printed


@pytest.fixture(autouse=True)
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"ranking": figures.figures()["ranking"]}
    monkeypatch.setattr(figures, "figures", lambda: one)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run comes to."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one = {"ranking": figures.figures()["ranking"]}
        patch.setattr(figures, "figures", lambda: one)
        assert gate("screen", *FLAGS.split(), "--output", folder)[0] == 0
    return folder


def gate(*arguments: Any) -> Outcome:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.output


def in_a_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns in a fork of this process; None where that died on the way."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            import torch

            torch.set_num_threads(1)  # threads are not forked
            os.write(sender, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def same(run: Path, sound: Path) -> bool:
    ours, theirs = open_run(run), open_run(sound)
    assert [(r.name, r.score, r.ci_low) for r in ours.results.ranking] == [
        (r.name, r.score, r.ci_low) for r in theirs.results.ranking
    ]
    assert not list(run.rglob("*.tmp")) and not (run / "parts").exists()
    assert {f.name for f in (run / "figures").iterdir()} == {"ranking.png", "ranking.svg"}
    return all(np.array_equal(ours.arrays[k], theirs.arrays[k]) for k in theirs.arrays)


def at_the(nth: int, name: str, act: Callable[[], None]) -> dict[str, int]:
    """From here on, the nth call of os.NAME does something else; the others are counted and made."""
    real, seen = getattr(os, name), {"calls": 0}

    def instead(*arguments: Any, **options: Any) -> Any:
        seen["calls"] += 1
        if seen["calls"] == nth:
            act()
        return real(*arguments, **options)

    setattr(os, name, instead)
    return seen


def killed(run: Path, nth: int, name: str) -> Outcome | None:
    def work() -> Outcome:
        at_the(nth, name, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return gate("screen", *FLAGS.split(), "--output", run)

    found = in_a_fork(work)
    return None if found is None else (found[0], found[1])


def finish(run: Path) -> Outcome:
    """As the user is told to: the same command again says whether to resume."""
    code, text = gate("screen", *FLAGS.split(), "--output", run)
    if code == 0:
        return code, text
    assert code == 2 and f"gate resume {run}" in text
    return gate("resume", run, "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_killed_at_any_write_a_run_can_be_finished(tmp_path: Path, sound: Path, name: str) -> None:
    """Before a file is on the disk, and before it has its name: of run.json, each part, the results and the figures."""
    points = 0
    for nth in range(1, 100):
        run = tmp_path / f"{name}-{nth}"
        if killed(run, nth, name) is not None:
            break
        points += 1
        code, text = finish(run)
        assert code == 0, (nth, text)
        assert same(run, sound), nth
        shutil.rmtree(run)
    assert points >= 10


def test_killed_while_loading_a_run_is_no_dead_end(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def work() -> Outcome:
        import gate.screening.bench

        gate.screening.bench.load_backbone = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        return globals()["gate"]("screen", *FLAGS.split(), "--output", run)

    assert in_a_fork(work) is None and (run / "run.json").is_file()
    code, text = finish(run)
    assert code == 0 and same(run, sound), text


def test_killed_before_anything_is_written_a_run_begins_anew(tmp_path: Path, sound: Path) -> None:
    run = create_directory(str(tmp_path / "run"))
    (run / "run.json.tmp").write_text("{", encoding="utf-8")
    assert gate("resume", run) == (
        2,
        f"gate: {run} holds no readable run.json, so there is nothing to resume.\n",
    )
    code, text = gate("screen", *FLAGS.split(), "--output", run)
    assert code == 0 and same(run, sound), text


def test_what_is_missing_of_the_figures_is_drawn_by_resume(sound: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    (run / "figures" / "ranking.svg").unlink()
    assert gate("resume", run)[0] == 0 and same(run, sound)
    before = (run / "figures" / "ranking.svg").stat().st_mtime_ns
    assert gate("resume", run)[0] == 0 and (run / "figures" / "ranking.svg").stat().st_mtime_ns == before
    shutil.rmtree(run / "figures")
    assert gate("resume", run)[0] == 0 and same(run, sound)


def full(run: Path, code: int, text: str) -> None:
    """One sentence, and what it says is true."""
    assert code == 3 and len(text.splitlines()) == 1 and "cannot be written (" in text, (code, text)
    assert text.rstrip().endswith((f"gate resume {run}", "repeat the command", "choose another --output."))
    assert f"gate resume {run}" in text or not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_is_full_at_any_write_loses_nothing(tmp_path: Path, sound: Path, name: str) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refused = 0
    for nth in range(1, 100):
        run = tmp_path / f"{name}-{nth}"

        def work(nth: int = nth, run: Path = run) -> tuple[int, str, bool]:
            seen = at_the(nth, name, refuse)
            return (*gate("screen", *FLAGS.split(), "--output", run), seen["calls"] < nth)

        code, text, untouched = in_a_fork(work)
        if untouched:
            break
        refused += 1
        parts = {p.name for p in run.glob("parts/*.safetensors")}
        if not (run / "results.json").is_file():
            full(run, code, text)
        else:
            assert code == 0 and "2 techniques on tiny" in text  # only figures are missing
        assert not list(run.rglob("*.tmp"))
        code, text = finish(run)
        assert code == 0 and same(run, sound), (nth, text, parts)
        shutil.rmtree(run)
    assert refused >= 8


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_at_any_byte_loses_nothing(tmp_path: Path, sound: Path) -> None:
    """RLIMIT_FSIZE: the system itself cuts a write short, in the middle of every file of a run."""
    sizes = {f.stat().st_size for f in sound.rglob("*") if f.is_file()}
    limits = sorted({0, 1, 100, 1000} | {s + d for s in sizes for d in (-1, 0)} | {30_000, 51_000, 52_000})
    codes = []
    for limit in limits:
        run = tmp_path / str(limit)

        def work(limit: int = limit, run: Path = run) -> Outcome:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            return gate("screen", *FLAGS.split(), "--output", run)

        code, text = in_a_fork(work)
        codes.append(code)
        if not (run / "results.json").is_file():
            full(run, code, text)
        assert not list(run.rglob("*.tmp"))
        code, text = finish(run)
        assert code == 0 and same(run, sound), (limit, text)
        shutil.rmtree(run)
    assert codes[0] == 3 and codes[-1] == 0 and set(codes) == {0, 3}


NEW_USER, NEW_MOUNTS, REMOUNT, PRIVATE = 0x10000000, 0x00020000, 32, (1 << 18) | (1 << 14)


def mount(place: Path, size: int, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", str(place).encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def small_disk(place: Path) -> None:
    """From here on this process, and no other, sees an empty file system there; its size is set by `mount`."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    libc.mount(b"none", b"/", None, PRIVATE, None)


@pytest.mark.slow
def test_a_disk_of_a_few_kilobytes_loses_nothing(tmp_path: Path, sound: Path) -> None:
    """A file system of 4 KiB to 1 MiB, a page larger each time where it matters, which is then given room."""

    def possible() -> bool:
        try:
            small_disk(tmp_path)
            mount(tmp_path, 4096)
        except OSError:
            return False
        return True

    if not in_a_fork(possible):
        pytest.skip("no file systems of its own for this user")
    codes = []
    for kib in (8, 12, 16, 40, 64, 100, 164, 180, 220, 260, 300, 340, 380, 420, 460, 500, 1024):
        disk, run = tmp_path, tmp_path / "run"

        def work(kib: int = kib, disk: Path = disk, run: Path = run) -> tuple[int, str, bool, int, str, bool]:
            small_disk(disk)
            mount(disk, kib << 10)
            code, text = gate("screen", *FLAGS.split(), "--output", run)
            finished = (run / "results.json").is_file()
            mount(disk, 64 << 20, REMOUNT)
            again, told = finish(run)
            return code, text, finished, again, told, same(run, sound)

        outcome = in_a_fork(work)
        assert outcome is not None, kib
        code, text, finished, again, told, equal = outcome
        codes.append(code)
        if not finished:
            assert code == 3 and len(text.splitlines()) == 1 and "cannot be written (" in text, (kib, text)
        assert again == 0 and equal, (kib, told)
    assert codes[0] == 3 and codes[-1] == 0
