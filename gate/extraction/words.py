"""An extraction in words: what was chosen and why, what it costs, how large it gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from gate.extraction.hardware import processor
from gate.extraction.head import Amalgamated
from gate.extraction.plan import cost_of
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.extraction.engine import Work
    from gate.extraction.request import Asked
    from gate.extraction.tune import Choice


def summary(asked: Asked, work: Work, choice: Choice) -> list[str]:
    """Two lines: what is done, and how."""
    backbone = work.backbone
    dtype = str(backbone.dtype).removeprefix("torch.")
    names = ", ".join(_named(name, technique) for name, technique in work.techniques.items())
    every = [
        t for name, technique in work.techniques.items() for t in _levels(technique, work.timesteps[name])
    ]
    levels = ", ".join(str(t) for t in dict.fromkeys(every))
    return [
        f"{len(asked.images)} images through {names} on {backbone.name} at t = {levels} ({backbone.device}, {dtype})",
        f"{choice.setting}: {choice.reason}",
    ]


def _named(name: str, technique: Technique) -> str:
    """With what it is made of, where that is several."""
    if not isinstance(technique, Amalgamated):
        return name
    return f"{name} of {', '.join(source.name for source in technique.saved.sources)}"


def _levels(technique: Technique, own: int) -> list[int]:
    if not isinstance(technique, Amalgamated):
        return [own]
    return [source.timestep for source in technique.saved.sources]


def explanation(asked: Asked, work: Work, choice: Choice, one: Mapping[str, Tensor], size: int) -> str:
    """Lines for a terminal. one: an image's features. size: their bytes. Counting FLOPs takes seconds."""
    n = len(asked.images)
    lines = [*summary(asked, work, choice), f"processor: {processor()}"]
    if not processor().compiler:
        lines.append("torch.compile is left out: there is no C++ compiler on this machine")
    lines += [*_cost(work), "", *(f"  {layer}  {_shape(value)}" for layer, value in one.items()), ""]
    total = size * n * len(work.techniques)
    lines.append(
        f"{_bytes(size)} an image and technique, {_bytes(total)} in all, stored as {asked.config.save_dtype}"
    )
    if choice.trials:
        lines += ["", "timed on the first images:"]
        for trial in choice.trials:
            rate = f"{trial.rate:8.1f} images/s" if trial.rate else "       -         "
            lines.append(f"  {rate}  {trial.setting}{f'  ({trial.note})' if trial.note else ''}")
        best = max((t.rate for t in choice.trials if t.setting == choice.setting), default=0.0)
        if best:
            lines.append(f"about {_duration(n * len(work.techniques) / best)} for all of them")
    return "\n".join(lines)


def _cost(work: Work) -> list[str]:
    cost = cost_of(work.backbone, list(work.techniques.values()), work.layers)
    reached = (
        f"a forward stops after its last layer, at {cost.reached:.0%}"
        if cost.reached < 0.995
        else "a forward runs to its end: the last layer lies there, and stopping early saves nothing"
    )
    calls = " + ".join(f"{c:g}" for c in cost.calls)
    return [
        f"{cost.planned:.3g} GFLOP an image: encode once {cost.encode:.3g}, denoiser calls {calls} "
        f"at {cost.forward:.3g}; {reached}",
        f"a loop that encodes for every technique and runs to the end takes {cost.naive / cost.planned:.2f} times that",
    ]


def _shape(value: Tensor) -> str:
    return f"{tuple(value.shape[1:])} {str(value.dtype).removeprefix('torch.')}"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
