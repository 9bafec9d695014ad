"""Whole screenings in forks of a test: they can be really killed, really refused by the system, and share imports."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gate.cli import app
from gate.report import figures
from gate.runs.directory import open_run

FLAGS = (
    "--techniques freeu,prompt --samples 14 --seeds 1 --timesteps 50 --image-samples 2 --image-steps 2 --folds 2 "
    "--resamples 200 --workers 1 --device cpu --quiet"
)
Outcome = tuple[int, str]  # exit code and what was printed


@pytest.fixture(name="one_figure")
def _one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing all of them is tested elsewhere."""
    one = {"ranking": figures.figures()["ranking"]}
    monkeypatch.setattr(figures, "figures", lambda: one)


@pytest.fixture(scope="module", name="sound")
def _sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run comes to."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    with pytest.MonkeyPatch.context() as patch:
        one = {"ranking": figures.figures()["ranking"]}
        patch.setattr(figures, "figures", lambda: one)
        assert gate("screen", *FLAGS.split(), "--output", folder)[0] == 0
    return folder


def gate(*arguments: Any) -> Outcome:
    """On one thread, as in a fork: the last bits of a sum follow the number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = CliRunner().invoke(app, [str(a) for a in arguments])
    finally:
        torch.set_num_threads(threads)
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


def finish(run: Path) -> Outcome:
    """As the user is told to: the same command again says whether to resume."""
    code, text = gate("screen", *FLAGS.split(), "--output", run)
    if code == 0:
        return code, text
    assert code == 2 and f"gate resume {run}" in text
    return gate("resume", run, "--quiet")
