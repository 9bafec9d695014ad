"""What a diffusers scheduler's config says of noise levels, as tables over timesteps; larger t is noisier.

A closed list: a class that is not on it is refused, because another reading of the same keys gives other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gate.errors import ConfigurationError

BETAS = frozenset(
    f"{name}Scheduler"
    for name in (
        *(
            "DDIM",
            "DDIMInverse",
            "DDIMParallel",
            "DDPM",
            "DDPMParallel",
            "DEISMultistep",
            "DPMSolverMultistep",
        ),
        *("DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete"),
        *(
            "EulerDiscrete",
            "HeunDiscrete",
            "KDPM2AncestralDiscrete",
            "KDPM2Discrete",
            "LCM",
            "LMSDiscrete",
            "PNDM",
        ),
        *("RePaint", "SASolver", "TCD", "UnCLIP", "UniPCMultistep", "CogVideoXDDIM", "CogVideoXDPM"),
    )
)
FLOWS = frozenset(f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM"))
EDMS = frozenset({"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"})
CONSISTENCY, TRIGFLOW = "CMStochasticIterativeScheduler", "SCMScheduler"
Tables = dict[str, Any]


def tables(config: Mapping[str, Any], tokens: int) -> Tables:
    """The arguments of a `NoiseSchedule`. config: of a diffusers scheduler, with its _class_name (without one, betas or
    flow by its keys). tokens: of one image; flow schedules may shift with it. Raises ConfigurationError.
    """
    name = str(config.get("_class_name", ""))
    if name in EDMS or name == CONSISTENCY:
        return _preconditioned(config)
    if name == TRIGFLOW:
        return flow_tables(told=1.0)
    if name and name not in BETAS | FLOWS:
        raise ConfigurationError(
            f"{name} is not among the schedulers whose noise levels gate knows: those with betas (DDPM and kin), flow "
            "matching, EDM, consistency and SCM."
        )
    if is_flow(config):
        return flow_tables(flow_shift(config, tokens), int(config.get("num_train_timesteps", 1000)))
    if not any(key in config for key in ("beta_schedule", "trained_betas", "beta_start")):
        raise ConfigurationError(
            f"Scheduler {name or 'without a name'} has no beta schedule and is of no other kind that gate knows: flow "
            "matching, EDM, consistency or SCM."
        )
    return _betas(config)


def _betas(config: Mapping[str, Any]) -> Tables:
    """Ho et al. 2020, Eq. 4. Where the last level is noise alone (Lin et al. 2024), a prediction of that noise says
    nothing of the image, and the level is left out."""
    from diffusers import DDPMScheduler

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    shift, zero = (
        float(config.get("snr_shift_scale") or 1.0),
        bool(config.get("rescale_betas_zero_snr", False)),
    )
    try:
        scheduler = DDPMScheduler(
            **{k: config[k] for k in keys if config.get(k) is not None},
            rescale_betas_zero_snr=zero and shift == 1,
        )
        alpha_bar = scheduler.alphas_cumprod.double()
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"The scheduler's config cannot be read as betas: {first}") from error
    if (
        shift != 1
    ):  # CogVideoX and CogView: the signal-to-noise ratio over `shift`, and zero at the end after that
        alpha_bar = alpha_bar / (shift + (1 - shift) * alpha_bar)
        if zero:
            root = alpha_bar.sqrt()
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    prediction = config.get("prediction_type", "epsilon")
    blind = prediction == "epsilon" and float(alpha_bar[-1]) == 0.0
    alpha_bar = alpha_bar[:-1] if blind else alpha_bar
    return {
        "signal": alpha_bar.sqrt(),
        "noise": (1 - alpha_bar).sqrt(),
        "prediction_type": prediction,
        "blind": int(blind),
    }


def flow_tables(shift: float = 1.0, steps: int = 1000, told: float | None = None) -> Tables:
    """x_t = (1 - sigma) x0 + sigma eps; sigma = shift s / (1 + (shift - 1) s) at s = (t + 1) / steps (Esser et al.
    2024, Eq. 23). The denoiser is told `told` times sigma; None: steps times.

    TrigFlow (Chen et al. 2025, SANA-Sprint, Eq. 7 to 10) is this as the network knows it, told sigma itself: with
    sigma = sin / (sin + cos) of its angle, the network's input is the flow's state and its output the flow.
    """
    s = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    sigma = shift * s / (1 + (shift - 1) * s)
    return {
        "signal": 1 - sigma,
        "noise": sigma,
        "prediction_type": "flow_prediction",
        "time": (steps if told is None else told) * sigma,
        "level": sigma,
    }


def _preconditioned(config: Mapping[str, Any]) -> Tables:
    """EDM (Karras et al. 2022, Eq. 7, Table 1) and consistency models (Song et al. 2023, App. C).

    x = (x0 + sigma eps) / sqrt(sigma^2 + sigma_data^2) is what the network is given, and x0_hat = skip x + out F(x).
    Timesteps count the sigmas of the model's own ramp, from the least.
    """
    consistent = config.get("_class_name") == CONSISTENCY
    low, high = float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0))
    data = float(config.get("sigma_data", 0.5))
    steps = int(config.get("num_train_timesteps", 40 if consistent else 1000))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ConfigurationError(
            f"{config.get('_class_name')} with prediction type {prediction!r} is not known."
        )
    sigma = _ramp(config, low, high, steps)
    norm = (sigma**2 + data**2).sqrt()
    offset = low if consistent else 0.0
    sign = -1.0 if prediction == "v_prediction" else 1.0
    return {
        "signal": 1 / norm,
        "noise": sigma / norm,
        "prediction_type": "preconditioned",
        "time": (250.0 if consistent else 0.25) * sigma.log(),
        "level": sigma,
        "skip": norm * data**2 / ((sigma - offset) ** 2 + data**2),
        "out": sign * (sigma - offset) * data / norm,
        "clean_scale": 1 / data,
    }


def _ramp(config: Mapping[str, Any], low: float, high: float, steps: int) -> Tensor:
    """(T,) float64, rising: Karras et al. 2022, Eq. 5, or equal steps of log sigma."""
    s = torch.linspace(0, 1, steps, dtype=torch.float64)
    if config.get("sigma_schedule", "karras") == "exponential":
        return (math.log(low) + s * (math.log(high) - math.log(low))).exp()
    rho = float(config.get("rho", 7.0))
    rising: Tensor = (low ** (1 / rho) + s * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    return rising


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler's config is of flow matching."""
    named = str(config.get("_class_name", "")) in FLOWS
    return named or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def flow_shift(config: Mapping[str, Any], tokens: int) -> float:
    """How a flow scheduler shifts sigma towards noise; dynamic shifts grow with the image's tokens.

    Spacings of a sampler's few steps (karras, terminal) are left out: they move no noise level.
    """
    if config.get("invert_sigmas"):
        raise ConfigurationError("A noise schedule must get noisier as t grows; this one is inverted.")
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (tokens - few) / (many - few)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else float(mu)
