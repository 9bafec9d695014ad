from __future__ import annotations

import subprocess
import sys

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


@pytest.mark.parametrize(("arguments", "most"), [(["--help"], 30), (["list", "techniques"], 80)])
def test_light_commands_load_few_of_our_modules(arguments: list[str], most: int) -> None:
    """A start is as slow as what it loads; a count says so on a busy machine too (25 and 66 modules today)."""
    code = f"{PROBE}\nprint(sum(m.split('.')[0] == 'gate' for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert 10 < int(done.stdout.splitlines()[-1]) < most


def test_python_m_gate_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "gate", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("gate 0."), done.stderr
