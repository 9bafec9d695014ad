"""A fork outlives its parent by seconds."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path


def test_a_fork_that_waits_for_work_ends_with_its_parent() -> None:
    script = (
        "import os, signal, time\n"
        "from gate.forks import Fork\n"
        "fork = Fork('one', lambda name: os.getpid(), 1)\n"
        "while not fork.pipe.poll(): time.sleep(0.01)\n"
        "print(fork.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    child, deadline = Path("/proc") / done.stdout.strip(), time.monotonic() + 30
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists()
