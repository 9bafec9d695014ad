"""What both training loops share: the learning rate over time, averaged weights, whole-file saves, the loss
log."""

from __future__ import annotations

import json
import os
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


def save_whole(state: Any, path: Path) -> None:
    """torch.save that a crash cannot leave half done."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def log_line(path: Path, **values: float) -> None:
    """Append one JSON line."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps({key: round(value, 6) for key, value in values.items()}) + "\n")
