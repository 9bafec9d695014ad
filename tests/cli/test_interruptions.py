"""Ctrl-C and SIGTERM through the real command: what is finished is kept, nobody waits for a child, and it is said."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fabricated_run import fabricate

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
CTRL_C, TERM = signal.SIGINT, signal.SIGTERM
FLAGS = "--samples 14 --seeds 1 --timesteps 50 --image-samples 2 --image-steps 2 --folds 2 --resamples 200 --device cpu"
PATIENCE = 60.0  # seconds; the machine may be busy. Who waited for a child would wait for ten minutes

# a figure, and a technique, that ignore every polite request and take ten minutes
DEAF = """
import os, signal, sys, time
def deaf(where):
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    open(os.path.join(os.environ["SEEN"], where + str(os.getpid())), "w").close()
    time.sleep(600)
"""
IN_FIGURES = (
    DEAF
    + """
import gate.report.figures
real = gate.report.figures.figures()
gate.report.figures.figures = lambda: {"ranking": real["ranking"], "slow": lambda run: deaf("figure")}
from gate.cli import main
main()
"""
)
IN_TECHNIQUE = (
    DEAF
    + """
import dataclasses
from importlib.metadata import EntryPoint
import gate.plugins
from gate.technique import Technique

@dataclasses.dataclass(kw_only=True)
class Deaf(Technique):
    name = "deaf"
    summary = "Never answers."
    def denoise(self, request, call_next):
        deaf("technique")

real = gate.plugins.entry_points
mine = [EntryPoint("deaf", "__main__:Deaf", "gate.techniques")]
gate.plugins.entry_points = lambda group: [*(mine if group == "gate.techniques" else ()), *real(group=group)]
gate.plugins.forget()
from gate.cli import main
main()
"""
)


class Command:
    """A command in a session of its own; `seen` is where its deaf parts tell that they run."""

    def __init__(self, script: str, folder: Path, *arguments: str) -> None:
        self.seen = folder / "seen"
        self.seen.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "SEEN": str(self.seen)},
            start_new_session=True,
        )

    def wait_for(self, *places: Path | str) -> None:
        """Until there is a file of these names in `seen`, or these paths."""
        until = time.monotonic() + PATIENCE
        while not all(list(self.seen.glob(f"{p}*")) if isinstance(p, str) else p.exists() for p in places):
            assert self.process.poll() is None and time.monotonic() < until, self.process.communicate()
            time.sleep(0.02)

    def end(self, number: signal.Signals, *, group: bool) -> tuple[int, str, str, float]:
        """Send a signal (group: to the children too, as a terminal does); code, stdout, stderr, seconds."""
        began = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, number)
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        finally:
            left = self.children()
            if self.process.poll() is None or left:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        assert not left, "children are left behind"
        return self.process.returncode, out, err, time.monotonic() - began

    def children(self) -> list[str]:
        """Processes of the session that still run."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,stat=", "-g", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [line for line in listed.stdout.splitlines() if "Z" not in line.split()[1]]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(CTRL_C, 130, "Interrupted"), pytest.param(TERM, 143, "Terminated", marks=pytest.mark.slow)],
)
def test_interrupted_in_the_figures_the_table_is_printed_and_the_numbers_are_complete(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    run = fabricate(tmp_path / "run").path
    command = Command(IN_FIGURES, tmp_path, "resume", str(run))
    command.wait_for("figure")
    returned, out, err, _ = command.end(number, group=number == CTRL_C)
    assert returned == code, err
    assert "noise-ensemble" in out and "Winners: " in out
    assert err == (
        f"{word}; the numbers are complete, figures are missing; draw them with: gate resume {run}\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(CTRL_C, 130, "Interrupted"), (TERM, 143, "Terminated")]
)
def test_interrupted_by_a_child_that_listens_to_nobody(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    run = tmp_path / "run"
    flags = ("--techniques", "freeu,deaf", *FLAGS.split(), "--workers", "2", "--output", str(run))
    command = Command(IN_TECHNIQUE, tmp_path, "screen", *flags)
    command.wait_for("technique")
    until = time.monotonic() + PATIENCE
    while len(list(run.glob("parts/*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    returned, out, err, seconds = command.end(number, group=number == CTRL_C)
    assert returned == code and out == "", err
    assert err.splitlines()[-1] == f"{word}; finish it with: gate resume {run}" and "Traceback" not in err
    assert seconds < PATIENCE and len(list(run.glob("parts/*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(CTRL_C, 130, "Interrupted"), (TERM, 143, "Terminated")]
)
def test_interrupted_while_loading_nothing_is_left_behind(
    tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    run = tmp_path / "run"
    script = (
        "import gate.screening.bench as b\n"
        + DEAF.replace("signal.signal(s, signal.SIG_IGN)", "pass")
        + "b.load_backbone = lambda *a, **k: deaf('loading')\nfrom gate.cli import main\nmain()"
    )
    command = Command(script, tmp_path, "screen", "--output", str(run))
    command.wait_for("loading")
    assert (run / "run.json").is_file()
    returned, out, err, _ = command.end(number, group=number == CTRL_C)
    assert (returned, out) == (code, "") and err.splitlines()[-1] == word and not run.exists()


def test_stdout_that_is_full_or_closed_is_no_bug_of_ours(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run").path
    shutil.rmtree(run / "figures", ignore_errors=True)
    python = f"{sys.executable} -m gate"
    for command, code, told in (
        (f"{python} rank {run} > /dev/full", 3, "gate: cannot write: No space left on device"),
        (f"{python} rank {run} --format json > /dev/full", 3, "gate: cannot write: No space left on device"),
        (f"{python} --help > /dev/full", 3, "gate: cannot write: No space left on device"),
        (f"{python} rank {run} > /dev/full 2> /dev/full", 3, ""),
        (f"{python} rank {run} >&-", 0, ""),
        (f"{python} rank {run} | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0, ""),
        (f"{python} rank {run} --format md | true; exit ${{PIPESTATUS[0]}}", 0, ""),
    ):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == code, (command, done.stderr)
        assert done.stderr.startswith(told) and len(done.stderr.splitlines()) == bool(told), command


def test_a_finished_screen_that_cannot_be_printed_says_where_it_lies(tmp_path: Path) -> None:
    from gate.report.figures import figures

    run = fabricate(tmp_path / "run").path
    (run / "figures").mkdir()
    for name in figures():
        (run / "figures" / f"{name}.svg").touch()
    command = f"{sys.executable} -m gate resume {run}"
    done = subprocess.run(
        ["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr == (
        f"gate: stdout cannot be written (No space left on device); the run is complete: gate rank {run}\n"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, check=False
    )
    assert done.returncode == 7, "a pipe that is closed hides no failed technique"
