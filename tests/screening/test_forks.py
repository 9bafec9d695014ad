"""What a technique does to its process, or to what it shares, ends with its fork; no other number changes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gate.metrics.eps import Eps
from gate.screening import attempt as trial
from gate.screening.attempt import VANILLA, Attempt
from gate.screening.bench import Bench, prepare
from gate.screening.config import make_config
from gate.screening.measure import measure
from gate.screening.workers import attempts
from gate.technique import Technique
from tests.closed_form import ClosedForm, flat_samples, known_noise
from tests.screening.test_evidence import Squared, Twice

__all__ = ["known_noise"]
pytestmark = pytest.mark.usefixtures("known_noise")


def bad(act: Callable[[Any], Any]) -> type[Technique]:
    class Bad(Twice):
        name = "bad"

        def denoise(self, request: Any, call_next: Any) -> Any:
            act(request)
            return super().denoise(request, call_next)

    return Bad


def changes_everything(request: Any) -> None:
    batch = request.batch
    batch.x0.add_(1)
    request.x_t.mul_(0)
    batch.samples[0].image[:] = 0
    batch.backbone.denoiser.forward = lambda x: x
    torch.nn.functional.linear = None  # type: ignore[assignment]
    torch.set_default_dtype(torch.float64)
    batch.backbone.schedule.a.zero_() if hasattr(batch.backbone.schedule, "a") else None


def leaves_a_thread(request: Any) -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()


def ignores_signals(request: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


@pytest.fixture
def bench() -> Bench:
    settings = {"timesteps": (1,), "seeds": 2, "layers": ("sum",), "image_samples": 1, "image_steps": 1}
    config = make_config({**settings, "resamples": 200, "technique_timeout": 2.0})
    return prepare(ClosedForm(), flat_samples(), config, [Squared(), Eps()], [])


def run(bench: Bench, monkeypatch: pytest.MonkeyPatch, cls: type[Technique]) -> dict[str, Attempt]:
    kinds = {"bad": cls, "twice": Twice}
    monkeypatch.setattr(trial, "create_technique", lambda name: kinds[name]())
    return {a.name: a for a in attempts(bench, ("bad", VANILLA, "twice"), 2, lambda name, rows: None)}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda _: os._exit(0), "ended its process with exit code 0 and gave no result"),
        (lambda _: os._exit(3), "ended its process with exit code 3"),
        (lambda _: sys.exit(4), "SystemExit: 4"),
        (
            lambda _: os.kill(os.getpid(), signal.SIGKILL),
            "ended by SIGKILL, as happens where memory runs out",
        ),
        (lambda _: os.kill(os.getpid(), signal.SIGSEGV), "ended by SIGSEGV"),
        (lambda _: (_ for _ in ()).throw(KeyboardInterrupt()), "KeyboardInterrupt"),
        (lambda _: (_ for _ in ()).throw(RuntimeError("boom")), "RuntimeError: boom"),
        (lambda _: time.sleep(60), "stopped after 2 s (--technique-timeout)"),
        (ignores_signals, "stopped after 2 s"),
    ],
    ids=[
        "exit 0",
        "exit 3",
        "sys.exit",
        "SIGKILL",
        "SIGSEGV",
        "interrupt",
        "raises",
        "hangs",
        "ignores signals",
    ],
)
def test_whoever_dies_or_hangs_has_failed_and_the_others_are_finished(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], Any], reason: str
) -> None:
    found = run(bench, monkeypatch, bad(act))
    assert found["bad"].failed and reason in found["bad"].reason and "gate check" in found["bad"].fix
    for name in (VANILLA, "twice"):
        assert found[name].measured is not None, found[name].reason


def test_what_one_changes_for_good_no_other_sees(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: measure(bench, cls()) for name, cls in ((VANILLA, Technique), ("twice", Twice))}
    found = run(bench, monkeypatch, bad(changes_everything))
    assert torch.get_default_dtype() == torch.float32
    for name, alone in before.items():
        measured = found[name].measured
        assert measured is not None
        for key, values in alone.shift.items():
            assert np.array_equal(values, measured.shift[key]), (name, key)


def test_a_thread_that_is_left_behind_does_not_keep_anybody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    assert run(bench, monkeypatch, bad(leaves_a_thread))["bad"].measured is not None
    assert time.monotonic() - began < 30


def test_what_a_technique_prints_goes_to_stderr(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(bench, monkeypatch, bad(lambda _: print("hello", flush=True)))
    out, err = capfd.readouterr()
    assert out == "" and "hello" in err
