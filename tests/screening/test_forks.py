"""What a technique does to its process, or to what it shares, ends with its fork; no other number changes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gate.metrics.eps import Eps
from gate.screening import attempt as trial
from gate.screening import workers
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


def test_with_one_worker_each_still_has_a_fork_and_every_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent's OpenMP team does not come along: a fork that used it would wait for ever."""
    torch.randn(600, 600) @ torch.randn(600, 600)  # the parent has a team
    monkeypatch.setattr(
        trial,
        "create_technique",
        lambda name: bad(lambda _: os.kill(os.getpid(), signal.SIGKILL))() if name == "bad" else Twice(),
    )
    found = {a.name: a for a in attempts(bench, ("bad", VANILLA, "twice"), 1, lambda name, rows: None)}
    assert "SIGKILL" in found["bad"].reason
    assert found[VANILLA].measured is not None and found["twice"].measured is not None


def pids(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    act: Callable[[str, list[str]], None],
) -> dict[str, str]:
    """The process that each was measured in, one at a time. act(name, before): in it, told what it did before."""
    before: list[str] = []  # of each process: a fork has the parent's empty list

    def attempted(bench: Bench, name: str, *_: Any, alone: bool) -> Attempt:
        act(name, before)
        before.append(name)
        return Attempt(name, reason=str(os.getpid()), failed=name == "broken")

    monkeypatch.setattr(workers, "attempt", attempted)
    monkeypatch.setattr(workers, "is_ours", lambda cls: True)
    monkeypatch.setattr(workers, "_is_ours_by_name", lambda name: not name.startswith("stranger"))
    return {a.name: a.reason for a in attempts(bench, names, 1, lambda name, rows: None)}


def test_ours_follow_each_other_in_a_fork_and_a_stranger_has_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("one", "two", "stranger a", "stranger b", "three", "broken", "four", "five")
    found = pids(bench, monkeypatch, names, lambda name, before: None)
    assert list(found) == [*names] and str(os.getpid()) not in found.values()
    together = [{"one", "two"}, {"stranger a"}, {"stranger b"}, {"three", "broken"}, {"four", "five"}]
    assert [{n for n in names if found[n] == pid} for pid in dict.fromkeys(found.values())] == together


def test_strangers_metrics_keep_every_technique_in_a_fork_of_its_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        workers, "attempt", lambda bench, name, *_, alone: Attempt(name, reason=str(os.getpid()))
    )
    monkeypatch.setattr(workers, "_is_ours_by_name", lambda name: True)  # Squared, a test's metric, is not
    found = {a.name: a.reason for a in attempts(bench, ("one", "two", "three"), 1, lambda name, rows: None)}
    assert len(set(found.values())) == 3


def test_whoever_dies_where_others_were_measured_is_tried_by_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heavy_after_others(name: str, before: list[str]) -> None:
        if (name == "heavy" and before) or name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)

    found = pids(bench, monkeypatch, ("one", "heavy", "two", "deadly", "three"), heavy_after_others)
    assert found["heavy"].isdigit() and found["heavy"] != found["one"]
    assert found["heavy"] == found["two"] != found["three"]
    assert "SIGKILL" in found["deadly"] and found["three"].isdigit()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda r: r.batch.samples[0].image.__setitem__(slice(None), 0), "the image of sample"),
        (lambda r: r.batch.backbone.denoiser.register_forward_hook(lambda *_: None), "_forward_hooks"),
        (lambda _: torch.set_default_dtype(torch.float64), "the default dtype"),
    ],
    ids=["image", "hook", "dtype"],
)
def test_where_nothing_can_be_forked_the_culprit_is_named_and_nothing_goes_on_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], Any], said: str
) -> None:
    monkeypatch.setattr(workers, "can_fork", lambda: False)
    try:
        kinds = {"bad": bad(act), "twice": Twice}
        monkeypatch.setattr(trial, "create_technique", lambda name: kinds[name]())
        found = list(attempts(bench, ("bad", VANILLA, "twice"), 1, lambda name, rows: None))
    finally:
        torch.set_default_dtype(torch.float32)
    assert [a.name for a in found] == [VANILLA, "bad"]
    assert found[-1].spoils and found[-1].measured is None and said in found[-1].reason


def test_where_nothing_can_be_forked_time_is_up_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "can_fork", lambda: False)
    found = run(bench, monkeypatch, bad(lambda _: time.sleep(60)))
    assert "stopped after 2 s" in found["bad"].reason and found["twice"].measured is not None


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_batches_are_halved_whatever_says_that_memory_ran_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def asks(request: Any) -> None:
        if len(request.batch) > 4:
            raise error("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    found = run(bench, monkeypatch, bad(asks))["bad"]
    assert found.measured is not None
    assert found.notices == (
        "out of memory in bad: going on with batches of 16",
        "out of memory in bad: going on with batches of 8",
        "out of memory in bad: going on with batches of 4",
    )


def test_a_run_that_had_to_stop_is_finished_without_the_culprit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the screening itself, on the embedded backbone, as it is where a GPU is in use."""
    from gate.errors import ConfigurationError
    from gate.registry import create_technique
    from gate.screening import resume, screen

    def hooks(request: Any) -> None:
        request.batch.backbone.denoiser.conv_in.register_forward_hook(lambda *_: None)

    def create(name: str) -> Technique:
        return bad(hooks)() if name == "freeu" else create_technique(name)

    monkeypatch.setattr(workers, "can_fork", lambda: False)
    monkeypatch.setattr(trial, "create_technique", create)
    settings: dict[str, Any] = {
        "samples": 14,
        "seeds": 1,
        "timesteps": (50,),
        "probes": (),
        "image_samples": 1,
    }
    with pytest.raises(ConfigurationError, match="freeu cannot be trusted.*gate resume"):
        screen("freeu,prompt", **settings, image_steps=1, output=str(tmp_path / "run"))
    results = resume(tmp_path / "run").results
    assert [row["name"] for row in results.ranking] == ["prompt"]
    assert [s["name"] for s in results.skipped] == ["freeu"]
    assert "_forward_hooks" in results.skipped[0]["reason"]
