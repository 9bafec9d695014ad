"""Noise levels by what a scheduler does: how much signal and noise are in its samples at a t, and in what is scaled."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gate.errors import ConfigurationError
from gate.schedule import NoiseSchedule
from gate.schedulers import is_flow

NEAR = 2e-3  # between a schedule's level and the scheduler's: some are told whole numbers of T sigma
# spacings of a sampler's few steps, which move no noise level
SPACINGS: Mapping[str, Any] = {
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


def noised(scheduler: Any, x0: Tensor, eps: Tensor, t: Any) -> Tensor:
    """x_t by the scheduler itself, as its samples are at one of its timesteps."""
    fresh = copy.copy(scheduler)  # at no step: it then looks for t, and does not count
    fresh._begin_index = fresh._step_index = None
    at = torch.as_tensor(t).reshape(1).to(x0.device)
    made: Tensor = (
        fresh.scale_noise(x0, at, eps) if hasattr(fresh, "scale_noise") else fresh.add_noise(x0, eps, at)
    )
    return made


def level(scheduler: Any, t: Any) -> tuple[float, float]:
    """(a, s) of what the denoiser is given at t: c (a' x0 + s' eps), c being the scheduler's scaling of its input."""
    one, zero = torch.ones(1, dtype=torch.float32), torch.zeros(1)
    fresh = copy.copy(scheduler)
    fresh._begin_index = fresh._step_index = None
    scale = fresh.scale_model_input(one, t) if hasattr(fresh, "scale_model_input") else one
    signal, noise = (float(scale * noised(scheduler, *pair, t)) for pair in ((one, zero), (zero, one)))
    return signal, noise


def level_of(schedule: NoiseSchedule, t: float) -> tuple[float, float]:
    """(a, s) of a schedule at what the denoiser is told, between its timesteps where it lies there."""
    told = np.arange(len(schedule)) if schedule.time is None else schedule.time.numpy()
    a, s = (float(np.interp(t, told, values.numpy())) for values in (schedule.signal, schedule.noise))
    return a, s


def schedule_of(
    scheduler: Any, timing: Mapping[str, Any], config: Mapping[str, Any], name: str
) -> NoiseSchedule:
    """The noise levels of a pipeline that has just set its scheduler.

    Raises ConfigurationError where they cannot be told. timing: how the pipeline set it: a shift that
    depends on the image's size is in there.
    """
    steps = int(config.get("num_train_timesteps", 1000))
    if is_flow(config) and hasattr(scheduler, "scale_noise"):
        fine = type(scheduler).from_config({**scheduler.config, **SPACINGS})
        how = {"mu": timing["mu"]} if timing.get("mu") is not None else {}
        shares = np.linspace(1.0, 1 / steps, steps)
        if timing.get("timesteps") is not None:  # CogView 4 is told the share of the schedule, not sigma
            how["timesteps"] = steps * shares
        fine.set_timesteps(sigmas=shares, **how)
        sigma = fine.sigmas[:-1].double().flip(0).cpu()
        made = NoiseSchedule(1 - sigma, sigma, "flow_prediction", fine.timesteps.double().flip(0).cpu())
    else:
        made = NoiseSchedule.from_config(config)
    for t in scheduler.timesteps:
        theirs, ours = level(scheduler, t), level_of(made, float(t))
        if max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > NEAR:
            raise ConfigurationError(
                f"{name} cannot be recorded: at t = {float(t):g} its {type(scheduler).__name__} mixes "
                f"{theirs[0]:.4f} of the image with {theirs[1]:.4f} of noise, and its config says {ours[0]:.4f} and "
                f"{ours[1]:.4f}."
            )
    return made
