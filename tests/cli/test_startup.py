from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "diffusers", "transformers", "numpy", "scipy", "sklearn", "matplotlib", "click")
PROBE = (
    "import sys; from gate.cli import app\n"
    "try: app(sys.argv[1:], prog_name='gate')\n"
    "except SystemExit as stop: assert not stop.code, stop.code\n"
    f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["screen", "--help"], ["list", "techniques"], ["list", "--help"]]
)
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "LOADED"


def test_importing_gate_and_its_command_line_loads_nothing_heavy() -> None:
    code = f"import gate, gate.cli, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("arguments", [["--help"], ["list", "techniques"]])
def test_light_commands_take_under_half_a_second(arguments: list[str]) -> None:
    """Processor time beyond that of starting Python: the clock on the wall measures the neighbours."""
    bare = min(_seconds("pass", []) for _ in range(3))
    assert min(_seconds(PROBE, arguments) for _ in range(3)) - bare < 0.5


def _seconds(code: str, arguments: list[str]) -> float:
    timed = f"import time; begin = time.process_time()\nexec({code!r})\nprint(time.process_time() - begin)"
    command = [sys.executable, "-c", timed, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def test_python_m_gate_is_the_same_command() -> None:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "gate", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("gate 0."), time.perf_counter() - begin
