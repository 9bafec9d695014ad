"""What both trainings share: the loop with its checkpoints and log, the learning rate over time, averaged weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, constant, then a linear decay to 2 % over the last `decay` share of `steps`.

    Only the tail depends on `steps`: a run can be resumed with another length up to the start of its decay.
    """

    rate: float
    warm_up: int
    steps: int
    decay: float

    def __call__(self, step: int) -> float:
        """The rate at `step`, which counts from 1."""
        rise = min(1.0, step / max(1, self.warm_up))
        tail = max(1.0, self.decay * self.steps)
        fall = min(1.0, max(0.02, (self.steps - step + 1) / tail))
        return self.rate * rise * fall


class Ema:
    """Exponential moving average of a module's parameters; young averages use the smaller decay (1 + n)/(10 +
    n)."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        """Move towards the module's present parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged = [self.state[name] for name, _ in module.named_parameters()]
        torch._foreach_lerp_(averaged, [p.detach() for p in module.parameters()], 1 - decay)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a saved average."""
        self.state = {name: value.clone() for name, value in state.items()}

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.state[name])


def train_steps(
    module: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[int], torch.Tensor],
    schedule: Schedule,
    ema: Ema,
    run: Path,
    name: str,
    *,
    stop_at: float | None,
    save_every: int,
) -> None:
    """Steps to the end of the schedule, from where RUN/name.pt stopped; the module ends with its averaged weights.

    loss_of: step, from 1 -> scalar loss; a function of the step alone, so that a resumed run equals an uninterrupted
    one. A parameter group's "share" scales its rate. stop_at: seconds since the epoch; saves and returns there.
    """
    checkpoint = run / f"{name}.pt"
    first = _resume(module, optimiser, ema, checkpoint)
    started = time.time()
    losses: list[float] = []
    for step in range(first + 1, schedule.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step) * group.get("share", 1.0)
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        ema.update(module, step)
        losses.append(float(loss.detach()))
        late = stop_at is not None and time.time() > stop_at
        if step % 50 == 0:
            _log(
                run / f"{name}.jsonl",
                step=step,
                loss=sum(losses) / len(losses),
                seconds=time.time() - started,
            )
            losses.clear()
        if step % save_every == 0 or late or step == schedule.steps:
            states = {"model": module.state_dict(), "optimiser": optimiser.state_dict()}
            save_whole({**states, "ema": ema.state, "step": step}, checkpoint)
        if late:
            break
    ema.copy_to(module)


def _resume(module: torch.nn.Module, optimiser: torch.optim.Optimizer, ema: Ema, checkpoint: Path) -> int:
    """Load the checkpoint if there is one; the steps done."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    module.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    ema.load(state["ema"])
    return int(state["step"])


def save_whole(state: Any, path: Path) -> None:
    """torch.save that a crash cannot leave half done."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _log(path: Path, **values: float) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps({key: round(value, 6) for key, value in values.items()}) + "\n")
