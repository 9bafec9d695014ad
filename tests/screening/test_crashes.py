"""A run that is killed at any write can be finished and gives the same numbers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from gate.runs.directory import create_directory
from tests.forked import FLAGS, Outcome, _one_figure, _sound, at_the, finish, gate, in_a_fork, same

__all__ = ["_one_figure", "_sound"]
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, limits and mounts of Linux"),
    pytest.mark.usefixtures("one_figure"),
]


def killed(run: Path, nth: int) -> Outcome | None:
    def work() -> Outcome:
        at_the(nth, "fsync", lambda: os.kill(os.getpid(), signal.SIGKILL))
        return gate("screen", *FLAGS.split(), "--output", run)

    found = in_a_fork(work)
    return None if found is None else (found[0], found[1])


@pytest.mark.slow
def test_killed_at_any_write_a_run_can_be_finished(tmp_path: Path, sound: Path) -> None:
    """Before each file is on the disk: run.json, every part and line of the journal, scores, results, figures."""
    points = 0
    for nth in range(1, 100):
        run = tmp_path / f"run-{nth}"
        outcome = killed(run, nth)
        if outcome is not None:
            assert outcome[0] == 0, outcome
            break
        points += 1
        code, text = finish(run)
        assert code == 0, (nth, text)
        assert same(run, sound), nth
        shutil.rmtree(run)
    assert points >= 10


@pytest.mark.slow
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


@pytest.mark.slow
def test_killed_before_anything_is_written_a_run_begins_anew(tmp_path: Path, sound: Path) -> None:
    run = create_directory(str(tmp_path / "run"))
    (run / "run.json.tmp").write_text("{", encoding="utf-8")
    assert gate("resume", run) == (
        2,
        f"gate: {run} holds no readable run.json, so there is nothing to resume.\n",
    )
    code, text = gate("screen", *FLAGS.split(), "--output", run)
    assert code == 0 and same(run, sound), text


def test_what_killed_writers_left_is_cleared_by_resume_and_nothing_else(sound: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    for place in (run, run / "parts"):
        place.mkdir(exist_ok=True)
        (place / ".tmpAb3xYz").write_bytes(b"half")  # safetensors' own
        (place / "scores.safetensors.tmp").write_bytes(b"half")
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    assert gate("resume", run)[0] == 0
    assert (
        not list(run.rglob("*tmp*"))
        and (run / "notes.txt").is_file()
        and (run / "scores.safetensors").is_file()
    )
    other = tmp_path / "no run"
    other.mkdir()
    (other / ".tmp-of-mine").write_bytes(b"")
    assert gate("resume", other)[0] != 0 and (other / ".tmp-of-mine").is_file()


def test_what_is_missing_of_the_figures_is_drawn_by_resume(sound: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    (run / "figures" / "ranking.svg").unlink()
    assert gate("resume", run)[0] == 0 and same(run, sound)
    before = (run / "figures" / "ranking.svg").stat().st_mtime_ns
    assert gate("resume", run)[0] == 0 and (run / "figures" / "ranking.svg").stat().st_mtime_ns == before
    shutil.rmtree(run / "figures")
    assert gate("resume", run)[0] == 0 and same(run, sound)
