"""The loop that all tasks train by: seeded order, a cosine, checkpoints from which it goes on to the same bits."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gate.data.order import draw
from gate.errors import ConfigurationError
from gate.tasks.task import Task, Tick

WARM_UP = 0.05  # share of the steps over which the rate rises
CHECKPOINTS = 10  # of a training
CLIP = 5.0  # the longest gradient


def learn(
    task: Task,
    head: nn.Module,
    loss: Callable[[list[int], int], Tensor],
    ids: Sequence[str],
    *,
    seed: int,
    checkpoint: Path | None = None,
    tick: Tick | None = None,
) -> None:
    """Train a head in place, by AdamW with a short warm-up and a cosine to 0.

    loss(rows, step): the mean loss of some of the samples. ids: of all samples; each epoch has an order that is a
    function of (seed, epoch, ids), so that the order they are given in changes nothing. checkpoint: see `Task.train`.
    Raises ConfigurationError where the loss is no number, or the checkpoint is another training's.
    """
    parameters = [p for p in head.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=task.rate, weight_decay=task.decay)
    per_epoch = math.ceil(len(ids) / task.batch)
    steps = task.epochs * per_epoch
    mark = _mark(task, head, ids, seed)
    done = _restored(checkpoint, mark, head, optimiser)
    every = max(1, steps // CHECKPOINTS)
    head.train()
    order: list[int] = []
    for step in range(done, steps):
        epoch, at = divmod(step, per_epoch)
        if at == 0 or not order:
            order = epoch_order(ids, seed, epoch)
        for group in optimiser.param_groups:
            group["lr"] = task.rate * pace((step + 0.5) / steps)
        optimiser.zero_grad(set_to_none=True)
        value = loss(order[at * task.batch : (at + 1) * task.batch], step)
        if not math.isfinite(float(value.detach())):
            raise ConfigurationError(
                f"The loss of {task.name} is {float(value.detach())} at step {step}; lower its rate ({task.rate:g})."
            )
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        done = step + 1
        if checkpoint is not None and done % every == 0:
            _keep(checkpoint, mark, head, optimiser, done)
        if tick:
            tick(done, steps)
    head.eval()


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Rows in the order of an epoch; a row's place is drawn from (seed, epoch, its id)."""
    keys = [draw(seed, f"{epoch}/{identity}") for identity in ids]
    return sorted(range(len(ids)), key=lambda i: (keys[i], ids[i]))


def pace(share: float) -> float:
    """Of the rate, when `share` of the steps are done: up in a line, then down by half a cosine."""
    if share < WARM_UP:
        return share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def rows_of(n: int, size: int) -> Iterator[slice]:
    """0 ... n in stretches."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _mark(task: Task, head: nn.Module, ids: Sequence[str], seed: int) -> str:
    """Of everything that a training is a function of, but for the features; of these, what the stem made of them."""
    found = hashlib.blake2b(digest_size=8)
    found.update(repr((task.name, task.settings, seed, sorted(ids))).encode())
    for name, value in head.state_dict().items():
        found.update(f"{name}{tuple(value.shape)}".encode())
        found.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _keep(file: Path, mark: str, head: nn.Module, optimiser: torch.optim.Optimizer, done: int) -> None:
    """The checkpoint, whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    state = {"mark": mark, "head": head.state_dict(), "optimiser": optimiser.state_dict(), "done": done}
    torch.save(state, partial)
    os.replace(partial, file)


def _restored(file: Path | None, mark: str, head: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Steps done, of the checkpoint that is taken up; 0 where there is none."""
    if file is None or not file.is_file():
        return 0
    try:
        state = torch.load(file, weights_only=True)
        theirs = state["mark"]
    except Exception as error:  # a file that torch did not write raises whatever it likes
        raise ConfigurationError(f"{file} is no checkpoint ({type(error).__name__}); remove it.") from error
    if theirs != mark:
        raise ConfigurationError(
            f"{file} is of another training (other settings, seed or features); remove it, or choose another output."
        )
    head.load_state_dict(state["head"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["done"])
