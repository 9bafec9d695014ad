"""The loop that all trainers share: seeded batches, checkpoints, held-out error, halved batches, interruption."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gate.adapters.formats import OVER_FITTED
from gate.errors import ConfigurationError, GateError, OutOfMemoryError, UsageError
from gate.fit.config import FitConfig
from gate.fit.course import Course, Material
from gate.fit.held_out import held_out_errors
from gate.fit.inputs import check_inputs
from gate.fit.report import write_report
from gate.fit.trainer import Trainer, create_trainer
from gate.machine import is_out_of_memory
from gate.runs.directory import write_json

if TYPE_CHECKING:
    from gate.backbone import Backbone

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]
MOST_HELD_OUT = 64  # images; more would take longer to judge by than to learn from
CHECKPOINT = "checkpoint.pt"


class FitInterrupted(KeyboardInterrupt):
    """Ctrl-C during a fit; the last checkpoint is in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"interrupted; call it again with --resume to go on from {folder}")
        self.folder = folder


@dataclass(frozen=True)
class Fitted:
    """A finished fit. report: what fit.json holds."""

    path: Path
    report: dict[str, Any]


def captions_of(caption: str | None) -> tuple[str, ...]:
    """The paper's three captions of an image (App. B): none, tags, the sentence. Without a caption, none alone."""
    if not caption:
        return ("",)
    words = caption.replace(",", " , ").split()
    tags: list[str] = []
    current: list[str] = []
    for word in [*words, ","]:
        if word.lower() in _STOP or word == ",":
            if current:
                tags.append(" ".join(current))
            current = []
        else:
            current.append(word)
    return ("", ", ".join(dict.fromkeys(tags)), caption)


_STOP = frozenset({
    "a", "an", "the", "of", "on", "in", "at", "with", "and", "or", "is", "are", "to", "from", "by",
    "photo", "picture", "image",
})  # fmt: skip


def fit(
    config: FitConfig, *, resume: bool = False, progress: Progress | None = None, log: Log | None = None
) -> Fitted:
    """Fit what `config` names and write it into `config.output`.

    Raises UsageError and ConfigurationError before anything is trained; `FitInterrupted` on Ctrl-C, with a
    checkpoint from which `resume` goes on to the same weights. Out of memory halves the batch that goes through at
    once; gradients are accumulated, so the result does not change.
    """
    progress, log = progress or (lambda *_: None), log or (lambda _: None)
    check_inputs(config, resume=resume)
    folder = _folder(config, resume)
    try:
        return _fit(config, folder, progress, log)
    except (
        BaseException
    ) as error:  # what failed cannot be resumed, and must not stand in the way of a better command
        if not resume and (isinstance(error, GateError) or not (folder / CHECKPOINT).is_file()):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _fit(config: FitConfig, folder: Path, progress: Progress, log: Log) -> Fitted:
    from gate.backbones import load_backbone

    backbone = load_backbone(config.backbone, device=config.device, dtype=config.dtype)
    material = _material(config, backbone)
    trainer = create_trainer(config, backbone, material.samples)
    try:
        steps = config.steps or trainer.steps
        log(
            f"{config.name} for {backbone.name} ({backbone.device}): {len(material.trained)} images to learn from, "
            f"{len(material.held_out)} held out, {steps} steps of {config.batch_size}, "
            + ", ".join(f"{k} {v:g}" for k, v in trainer.facts().items())
        )
        course = _train(trainer, backbone, material, config, steps, folder, progress, log)
        return Fitted(folder, write_report(trainer, backbone, material, config, course, folder))
    finally:
        trainer.release()


def _folder(config: FitConfig, resume: bool) -> Path:
    """The output folder: new, or that of the very same fit."""
    folder, facts = Path(config.output), config.facts()
    began = folder / "fit.json"
    if resume:
        if not (folder / CHECKPOINT).is_file():
            raise UsageError(f"{folder} holds no checkpoint to resume from.")
        known = json.loads(began.read_text(encoding="utf-8"))["config"]
        usual = FitConfig.model_validate({"name": config.name}).facts()  # an older fit lacks later settings
        if {**usual, **known} != facts:
            raise ConfigurationError(f"{folder} was fitted with other settings; resume with the same ones.")
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(began, {"schema_version": 1, "config": facts})
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder


def _material(config: FitConfig, backbone: Backbone) -> Material:
    from gate.backbone import pixels
    from gate.data import load_data, load_images

    size = backbone.image_size
    if config.images is not None:
        samples = load_images(
            config.images, size=size, limit=config.samples, seed=config.seed, captions=config.captions
        )
    else:
        samples = load_data(str(config.data), n=config.samples, size=size, seed=config.seed)
    n = len(samples)
    order = np.random.default_rng([config.seed, n]).permutation(n).tolist()
    apart = min(max(2, round(config.held_out * n)), n - 1, MOST_HELD_OUT)
    x0 = torch.cat([backbone.encode(pixels([sample])) for sample in samples])
    captions = tuple(captions_of(sample.caption) for sample in samples)
    return Material(samples, x0, captions, tuple(sorted(order[apart:])), tuple(sorted(order[:apart])))


def _train(
    trainer: Trainer,
    backbone: Backbone,
    material: Material,
    config: FitConfig,
    steps: int,
    folder: Path,
    progress: Progress,
    log: Log,
) -> Course:
    optimiser = torch.optim.AdamW(trainer.groups, weight_decay=1e-2)
    course = _restore(trainer, optimiser, folder, config)
    if not course.held_out:
        course.held_out[0] = held_out_errors(
            trainer.plain_loss, backbone, material, log, together=trainer.together
        ).tolist()
        _keep(trainer, optimiser, course, folder)
    began, losses = time.perf_counter() - course.seconds, []
    try:
        while course.step < steps:
            losses.append(_step(trainer, backbone, material, config, course, optimiser, log))
            course.step += 1
            progress(config.name, course.step, steps)
            if course.step % config.check_every == 0 or course.step == steps:
                course.losses[course.step] = float(np.mean(losses))
                losses.clear()
                errors = held_out_errors(trainer.loss, backbone, material, log, together=trainer.together)
                course.held_out[course.step] = errors.tolist()
                course.seconds = time.perf_counter() - began
                if errors.mean() <= np.mean(course.held_out[course.best]) or course.best == 0:
                    course.best = course.step
                    trainer.save(folder)
                _keep(trainer, optimiser, course, folder)
                log(
                    f"step {course.step}: loss {course.losses[course.step]:.4f}, held out {errors.mean():.4f}"
                )
    except KeyboardInterrupt as stop:
        raise FitInterrupted(folder) from stop
    trainer.save(folder / OVER_FITTED)
    return course


def _step(
    trainer: Trainer,
    backbone: Backbone,
    material: Material,
    config: FitConfig,
    course: Course,
    optimiser: torch.optim.Optimizer,
    log: Log,
) -> float:
    """One step, a function of (seed, step): the mean loss of its batch."""
    g = torch.Generator().manual_seed(config.seed * 1_000_003 + course.step)
    b, n = config.batch_size, len(backbone.schedule)
    rows = [material.trained[i] for i in torch.randint(len(material.trained), (b,), generator=g).tolist()]
    texts = [
        material.captions[row][int(u * len(material.captions[row]))]
        for row, u in zip(rows, torch.rand(b, generator=g).tolist(), strict=True)
    ]
    t = ((torch.arange(b) + torch.rand(b, generator=g)) * n / b).long().clamp(max=n - 1)
    x0 = material.x0[rows]
    eps = torch.randn(x0.shape, generator=g).to(x0)
    x_t = backbone.schedule.add_noise(x0, eps, t)
    while True:
        try:
            optimiser.zero_grad(set_to_none=True)
            trainer.begin_step()
            total = 0.0
            for i in range(0, b, course.micro):
                part = slice(i, i + course.micro)
                loss = trainer.loss(x_t[part], eps[part], t[part], texts[part], rows[part]).sum() / b
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if course.micro == 1:
                raise OutOfMemoryError(
                    "One image at a time does not fit into memory; use a smaller backbone or --dtype bfloat16."
                ) from error
        course.micro //= 2  # out of the handler: its error holds the frames, and their tensors
        log(f"out of memory: going on with {course.micro} images at a time, batches as before")
    if not math.isfinite(total):
        raise ConfigurationError(f"The loss is {total} at step {course.step}; lower the rate.")
    torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
    optimiser.step()
    trainer.end_step()
    return total


def _restore(trainer: Trainer, optimiser: torch.optim.Optimizer, folder: Path, config: FitConfig) -> Course:
    course = Course(micro=config.batch_size)
    file = folder / CHECKPOINT
    if file.is_file():
        state = torch.load(file, weights_only=True)
        with torch.no_grad():
            for parameter, value in zip(trainer.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        optimiser.load_state_dict(state["optimiser"])
        course = Course(**state["course"])
    return course


def _keep(trainer: Trainer, optimiser: torch.optim.Optimizer, course: Course, folder: Path) -> None:
    """The checkpoint, whole or not at all."""
    state = {
        "parameters": [p.detach() for p in trainer.parameters],
        "optimiser": optimiser.state_dict(),
        "course": vars(course),
    }
    partial = folder / (CHECKPOINT + ".partial")
    torch.save(state, partial)
    os.replace(partial, folder / CHECKPOINT)
