"""One mutant on trial: a forked child whose import system gives it the mutated module, and runs the tests."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Literal

Outcome = Literal["killed", "timed out", "survived"]
ROOT = Path(__file__).parents[2]
# What takes seconds to import and is never mutated; nothing of gate, or a child would hold the original.
HEAVY = (
    "torch",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "hypothesis",
    "diffusers",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
    "pydantic",
    "rich.progress",
    "typer",
)


def warm() -> None:
    """Import what every child needs. One thread: a pool of threads does not survive a fork."""
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # the tests say what they need
    import torch

    torch.set_num_threads(1)


def module_name(file: str) -> str:
    """The name that a file is imported by; probes lie at the top and are linked into gate."""
    inside = file if file.startswith("gate/") else f"gate/{file}"
    return inside.removesuffix(".py").replace("/", ".")


def trial(file: str, source: str, tests: Sequence[str], seconds: float) -> Outcome:
    """Whether `tests` notice that `file` reads `source`."""
    child = os.fork()
    if child == 0:
        os.setsid()  # its workers end with it
        try:
            _run(file, source, tests)
        finally:
            os._exit(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def _run(file: str, source: str, tests: Sequence[str]) -> None:
    import pytest

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Mutated(module_name(file), ROOT / file, source))
    os.chdir(ROOT)
    # in this process: workers of xdist would import the original
    code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])
    os._exit(int(code))


class _Mutated(importlib.abc.MetaPathFinder):
    """Finds one module, and gives its source as another."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, str(self.path), self.source)
        return importlib.machinery.ModuleSpec(fullname, loader, origin=str(self.path))


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        """The mutant's, never what is cached of the original."""
        return compile(self.source, self.path, "exec")
