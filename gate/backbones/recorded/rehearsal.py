"""A pipeline's own `__call__`, run with stand-ins where it meets its denoiser, its scheduler and its VAE."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gate.backbones.hush import hushed
from gate.errors import ConfigurationError, GateError

Feed = Callable[["Turn", Any], Tensor]  # (the turn that ends, the scheduler) -> the next sample
Answer = Callable[["Turn"], Any]  # what the denoiser gives in this turn


@dataclass
class Turn:
    """One step: what the denoiser was given and gave, and what the scheduler was then told.

    calls: of the denoiser. prediction: what the scheduler was given as the model's output; sample: beside it.
    """

    number: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    t: Tensor | float = 0.0
    sample: Tensor | None = None
    prediction: Tensor | None = None


@dataclass
class Performance:
    """A whole call. decoded: what the VAE was given at its end; timing: how the scheduler was set."""

    turns: list[Turn]
    scheduler: Any
    decoded: Tensor | None = None
    timing: dict[str, Any] = field(default_factory=dict)


class _Ended(Exception):
    """Enough was seen: nothing after this is of interest."""


def perform(
    pipeline: Any,
    denoiser: Any,
    options: Mapping[str, Any],
    *,
    answer: Answer,
    feed: Feed,
    last: int = 0,
    at_forward: bool = False,
) -> Performance:
    """Run the pipeline's call. last: the turn after which it ends; 0 plays on until the VAE is asked.
    at_forward: end at the denoiser's first forward.

    Raises ConfigurationError where the call itself fails, with what it said.
    """
    shown = Performance([], copy.deepcopy(pipeline.scheduler))
    turn = Turn(0)

    def forward(*args: Any, **kwargs: Any) -> Any:
        turn.calls += 1
        turn.args, turn.kwargs = args, kwargs
        if at_forward:
            shown.turns.append(turn)
            raise _Ended
        return answer(turn)

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **how: Any) -> Any:
        nonlocal turn
        turn.t, turn.sample, turn.prediction = timestep, sample, model_output
        shown.turns.append(turn)
        if last and turn.number + 1 >= last:
            raise _Ended
        fed = feed(turn, shown.scheduler)
        turn = Turn(turn.number + 1)
        if getattr(shown.scheduler, "_step_index", None) is not None:
            shown.scheduler._step_index += 1
        return SimpleNamespace(prev_sample=fed) if how.get("return_dict", True) else (fed,)

    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        shown.timing = {**({"num_inference_steps": args[0]} if args else {}), **kwargs}
        real(*args, **kwargs)

    def decode(z: Tensor, *_: Any, **__: Any) -> Any:
        shown.decoded = z
        raise _Ended

    real = shown.scheduler.set_timesteps
    shown.scheduler.set_timesteps = functools.wraps(real)(set_timesteps)
    shown.scheduler.step = functools.wraps(shown.scheduler.step)(step)
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    with _standing(pipeline, shown.scheduler, [(denoiser, "forward", forward), (vae, "decode", decode)]):
        try:
            pipeline(**options)
        except _Ended:
            pass
        except GateError:
            raise
        except NameError as error:  # diffusers imports what a pipeline may lack only where it is installed
            raise ConfigurationError(
                f"{type(pipeline).__name__} needs the package {error.name}, which is not installed: "
                f"pip install {error.name}."
            ) from error
        except Exception as error:  # a stranger's call raises what it happens to meet
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(
                f"{type(pipeline).__name__} cannot be called with a prompt alone: {said}"
            ) from error
    return shown


@contextlib.contextmanager
def _standing(pipeline: Any, scheduler: Any, places: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """For a while, these stand in; random numbers that are drawn meanwhile were never drawn."""
    held, own = (
        pipeline.scheduler,
        [(module, word, vars(module).get(word)) for module, word, _ in places if module is not None],
    )
    pipeline.scheduler = scheduler
    for module, word, stand_in in places:
        if module is not None:
            setattr(module, word, functools.wraps(getattr(module, word))(stand_in))
    try:
        with torch.random.fork_rng(), torch.no_grad(), hushed():
            yield
    finally:
        pipeline.scheduler = held
        for module, word, before in own:
            if before is None:
                vars(module).pop(word, None)
            else:
                setattr(module, word, before)
