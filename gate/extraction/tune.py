"""Which setting runs soonest here: timed on the first images, never believed; and only where the bits stay the same.

`exact` takes settings alone whose features equal those of the rule's setting to the last bit. `fast` may also change
layout or compile, which moves the last bits of half precision, where that is faster by a margin. What was found is
remembered for (machine, model, size), so that one machine goes on making the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from gate.errors import GateError
from gate.extraction.engine import Work, features_of, running
from gate.extraction.hardware import processor
from gate.extraction.plan import Precision, Setting
from gate.forks import Fork
from gate.machine import can_fork
from gate.sample import SampleSet

MARGIN = 1.1  # how much faster a setting with other bits must be
SHARE = 0.1  # of the whole extraction that timing may take
TRIAL = 3  # batches of each process that a setting is timed on, the first of which warms up
COMPILE_SECONDS = 90.0  # what torch.compile is expected to take; measured 40 to 85 s on two cores
FILE = "settings.json"
Digests = dict[str, str]


@dataclass(frozen=True)
class Trial:
    """A setting that was timed. rate: images/s of all processes together, 0 where it did not run. note: why not it."""

    setting: Setting
    rate: float
    note: str = ""


@dataclass(frozen=True)
class Choice:
    """The setting that is used, and why. trials: what was timed, the rule's setting first."""

    setting: Setting
    reason: str
    trials: tuple[Trial, ...] = ()


def choose(
    work: Work,
    samples: SampleSet,
    usual: Setting,
    *,
    images: int,
    precision: Precision = "exact",
    compile: bool = False,
    memory: Path | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Choice:
    """The setting for so many images. samples: the first ones, that settings are timed on.

    memory: a folder in which choices are remembered. compile: whether torch.compile may be tried; it needs a compiler.
    """
    key = _key(work, precision, compile)
    if (known := _recall(memory, key)) is not None:
        return Choice(known, "it was the fastest when it was timed on this machine for this model and size")
    if work.backbone.device.type != "cpu":
        return Choice(usual, "by rule: on a GPU the batch alone is chosen, by the size of the image")
    if SHARE * images / usual.processes < 2 * TRIAL * usual.batch:  # two settings, or nothing is compared
        return Choice(usual, f"by rule: {images} images are too few to be worth timing settings on")
    began = time.perf_counter()
    rate, truth = _timed(work, samples, usual)
    trials = [Trial(usual, rate, "the rule's setting")]
    budget = SHARE * images / rate
    if budget < 2 * (time.perf_counter() - began):
        return Choice(
            usual,
            f"by rule: {images} images take about {images / rate:.0f} s, too few to be worth timing others",
            tuple(trials),
        )
    best = trials[0]
    for others in (_shares, _batches, _layouts if precision == "fast" else _none):
        for setting in others(best.setting, compile and images / rate > 4 * COMPILE_SECONDS):
            if time.perf_counter() - began > budget and not setting.compiled:
                trials.append(Trial(setting, 0.0, "not timed: timing had taken its share"))
                continue
            trials.append(_tried(work, samples, setting, truth, precision, best))
            log(f"{setting}: {trials[-1].rate:.1f} images/s {trials[-1].note}".rstrip())
            best = best if trials[-1].note else trials[-1]
    _remember(memory, key, best.setting)
    return Choice(
        best.setting, f"the fastest of {len(trials)} settings, timed on the first images", tuple(trials)
    )


def _tried(
    work: Work, samples: SampleSet, setting: Setting, truth: Digests, precision: Precision, best: Trial
) -> Trial:
    try:
        rate, digests = _timed(work, samples, setting)
    except (GateError, RuntimeError) as error:
        return Trial(setting, 0.0, f"does not run: {str(error).strip().splitlines()[0][:100]}")
    same = digests == truth
    if not same and precision == "exact":
        return Trial(setting, rate, "other bits: not for exact")
    if not same and not (setting.compiled or setting.channels_last != best.setting.channels_last):
        return Trial(setting, rate, "other bits, of nothing but the number of threads or images: left out")
    if rate <= best.rate * (1.0 if same else MARGIN):
        return Trial(setting, rate, "not faster" if same else f"not {MARGIN - 1:.0%} faster, with other bits")
    return Trial(setting, rate)


def _shares(best: Setting, _: bool) -> Iterator[Setting]:
    """Other ways to share the cores among processes and threads."""
    cores = processor().cores
    for processes in range(1, cores + 1) if can_fork() else ():
        if cores % processes == 0 and processes != best.processes:
            yield best.with_(processes=processes, threads=cores // processes)


def _batches(best: Setting, _: bool) -> Iterator[Setting]:
    yield from (best.with_(batch=batch) for batch in (best.batch // 2, 2 * best.batch) if batch)


def _layouts(best: Setting, compile: bool) -> Iterator[Setting]:
    yield best.with_(channels_last=not best.channels_last)
    if compile and processor().compiler:
        yield best.with_(processes=1, threads=processor().cores, compiled=True)


def _none(*_: object) -> Iterator[Setting]:
    yield from ()


def _timed(work: Work, samples: SampleSet, setting: Setting) -> tuple[float, Digests]:
    """Images/s of all processes together, and a digest of each image's features. The first batch warms up."""
    images = samples[: max((TRIAL - 1) * setting.batch, 1)]
    if setting.processes == 1:
        return _one_process(work, images, setting)
    forks = [
        Fork(f"timing {i}", lambda _: _one_process(work, images, setting), setting.threads)
        for i in range(setting.processes)
    ]
    rates, digests = [], {}
    try:
        for fork in forks:
            connection.wait(fork.waits)
            found, _ = fork.result()
            if found is None:
                raise RuntimeError(fork.fate())
            rates.append(found[0])
            digests = found[1]
    finally:
        for fork in forks:
            fork.end()
    return len(rates) * min(rates), digests


def _one_process(work: Work, images: SampleSet, setting: Setting) -> tuple[float, Digests]:
    name = next(iter(work.techniques))
    with running(work.backbone, setting):
        features_of(work, name, images[: setting.batch], setting.batch)
        began = time.perf_counter()
        made = features_of(work, name, images, setting.batch)
        rate = len(images) / (time.perf_counter() - began)
    return rate, {sample.id: _digest(made, i) for i, sample in enumerate(images) if i < _COMPARED}


_COMPARED = 8  # images whose bits are compared: settings run different numbers of them


def _digest(made: Mapping[str, torch.Tensor], i: int) -> str:
    found = hashlib.blake2b(digest_size=16)
    for layer in sorted(made):
        found.update(layer.encode())
        found.update(made[layer][i].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _key(work: Work, precision: Precision, compile: bool) -> str:
    """What a choice is good for: machine, library, model, size, layers, technique."""
    backbone = work.backbone
    said = [
        str(processor()), torch.__version__, backbone.fingerprint(), backbone.image_size, str(backbone.dtype),
        sorted(work.layers), sorted(work.techniques), precision, compile and bool(processor().compiler),
        work.epilogue.describe(),
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(said, default=str).encode(), digest_size=12).hexdigest()


def _recall(memory: Path | None, key: str) -> Setting | None:
    if memory is None:
        return None
    try:
        return Setting(**json.loads((memory / FILE).read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or another gate's
        return None


def _remember(memory: Path | None, key: str, setting: Setting) -> None:
    """Where it cannot be written, it is timed again the next time."""
    if memory is None:
        return
    from gate.runs.directory import write_json

    with contextlib.suppress(OSError):
        memory.mkdir(parents=True, exist_ok=True)
        known: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            known = dict(json.loads((memory / FILE).read_text(encoding="utf-8")))
        write_json(memory / FILE, {**known, key: dataclasses.asdict(setting)})
