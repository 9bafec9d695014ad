"""Noise levels: one place for eps, v, x0 and flow predictions.

Throughout, x_t = a_t x0 + s_t eps, with a_t the signal coefficient and s_t the noise coefficient:
a_t = sqrt(alpha_bar_t), s_t = sqrt(1 - alpha_bar_t) for DDPM schedules; a = 1 - sigma, s = sigma for flow; 1 and
sigma over sqrt(sigma^2 + sigma_data^2) in EDM and consistency models. x_t is what the network is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from gate.errors import ConfigurationError, UsageError
from gate.schedulers import flow_tables, tables

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction", "preconditioned"]
LEVEL = 0.05  # of the schedule, where features are taken by default: 50 of 1000


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Signal and noise coefficients per timestep, and what the denoiser predicts.

    signal, noise: (T,) float64; index t in [0, T). Larger t is noisier, always. time: (T,) float64, what the
    denoiser is told at t, where that is not t itself (flow: T sigma). level: (T,) sigma as the authors count it, where
    that is not `noise`. skip, out: (T,), of a preconditioned network: x0_hat = skip x_t + out prediction.
    clean_scale: of a clean latent, as the network knows it. blind: levels after T that were left out, because a
    prediction of noise says nothing of the image there.
    """

    signal: Tensor
    noise: Tensor
    prediction_type: PredictionType
    time: Tensor | None = None
    level: Tensor | None = None
    skip: Tensor | None = None
    out: Tensor | None = None
    clean_scale: float = 1.0
    blind: int = 0

    def __post_init__(self) -> None:
        if self.prediction_type not in get_args(PredictionType):
            raise ConfigurationError(
                f"Prediction type {self.prediction_type!r} is not known; a scheduler must say one of "
                f"{', '.join(get_args(PredictionType))}."
            )
        snr = self.signal / self.noise.clamp_min(1e-12)
        if not bool((snr[1:] <= snr[:-1] * (1 + 1e-9)).all()):
            raise ConfigurationError("A noise schedule must get noisier as t grows; this one does not.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tokens: int = 4096) -> NoiseSchedule:
        """From a diffusers scheduler's config (`gate.schedulers`). tokens: of one image; flow may shift with it."""
        return cls(**tables(config, tokens))

    @classmethod
    def flow(cls, shift: float = 1.0, steps: int = 1000) -> NoiseSchedule:
        """Of flow matching; the denoiser is told steps * sigma (`gate.schedulers.flow_tables`)."""
        return cls(**flow_tables(shift, steps))

    def __len__(self) -> int:
        return len(self.signal)

    def told(self, t: Tensor) -> Tensor:
        """What the denoiser is told at t: t itself, or float32 (flow: T sigma; EDM: log(sigma) / 4).

        t: (b,) long; a floating-point t is no timestep of the schedule but what is to be told already.
        """
        if self.time is None or t.is_floating_point():
            return t
        return self.time[t.cpu()].float().to(t.device)

    @property
    def counts(self) -> bool:
        """Whether what the denoiser is told counts timesteps (t, or T sigma); else it is sigma or its logarithm."""
        flow = self.prediction_type == "flow_prediction"
        return self.time is None or (flow and float(self.time.max()) > 1)

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level, (b,) float64: the coefficient s_t in [0, 1], or EDM's sigma. t: (b,) long."""
        return (self.noise if self.level is None else self.level)[t.cpu()]

    def nearest(self, *, alpha_bar: float | None = None, sigma: float | None = None) -> int:
        """The timestep whose alpha_bar or sigma (give one) is nearest. Raises UsageError outside its range."""
        every = torch.arange(len(self))
        name, wanted, levels = "sigma", sigma, self.sigma(every)
        if wanted is None:
            name, wanted, levels = "alpha_bar", alpha_bar, self.alpha_bar(every)
        assert wanted is not None
        low, high = float(levels.min()), float(levels.max())
        if not low - 1e-6 <= wanted <= high + 1e-6:
            raise UsageError(
                f"This schedule has no {name} of {wanted:g}; choose one in {low:.4g} ... {high:.4g}."
            )
        return int((levels - wanted).abs().argmin())

    def check(self, t: int) -> int:
        """t itself where it is a timestep of this schedule, else an error."""
        if not 0 <= t < len(self):
            why = (
                " (the levels above hold noise alone, which a prediction of noise cannot tell from any other)"
            )
            raise UsageError(
                f"Timestep {t} lies outside this schedule; choose one in 0 ... {len(self) - 1}{why * bool(self.blind)}."
            )
        return t

    def at(self, share: float) -> int:
        """The timestep that lies at this share of the schedule, 1 at least: 0.05 is 50 of 1000."""
        return min(max(1, round(share * len(self))), len(self) - 1)

    def clean(self, x0: Tensor) -> Tensor:
        """A clean latent as the network is given it."""
        return x0 if self.clean_scale == 1 else x0 * self.clean_scale

    def alpha_bar(self, t: Tensor) -> Tensor:
        """Share of signal variance, (b,) float64 in (0, 1]. t: (b,) long."""
        return self.signal[t.cpu()] ** 2 / (self.signal[t.cpu()] ** 2 + self.noise[t.cpu()] ** 2)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a_t, s_t shaped (b, 1, 1, 1), in the dtype and on the device of `like`."""
        a, s = self._rows(t, like, self.signal, self.noise)
        return a, s

    @staticmethod
    def _rows(t: Tensor, like: Tensor, *tables: Tensor) -> list[Tensor]:
        """Each table at t, (b, 1, 1, 1), in the dtype and on the device of `like`."""
        shape, index = (-1,) + (1,) * (like.ndim - 1), t.cpu()
        return [table[index].to(like).view(shape) for table in tables]

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x0 + s_t eps. x0, eps: (b, c, h, w); t: (b,) long."""
        a, s = self.coefficients(t, x0)
        return a * x0 + s * eps

    def implied_eps(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The eps with which x0 becomes x_t: (x_t - a_t x0) / s_t."""
        a, s = self.coefficients(t, x_t)
        return (x_t - a * x0) / s

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should say, (b, c, h, w): eps, x0, v = a eps - s x0, eps - x0, or EDM's F."""
        a, s = self.coefficients(t, x0)
        if self.skip is not None and self.out is not None:
            skip, out = self._rows(t, x0, self.skip, self.out)
            return (x0 - skip * (a * x0 + s * eps)) / out
        if self.prediction_type == "epsilon":
            return eps
        if self.prediction_type == "sample":
            return x0
        return a * eps - s * x0 if self.prediction_type == "v_prediction" else eps - x0

    def x0_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x0_hat, (b, c, h, w). v = a eps - s x0 (Salimans & Ho 2022); flow = eps - x0 (Lipman et al. 2023)."""
        a, s = self.coefficients(t, x_t)
        if self.skip is not None and self.out is not None:
            skip, out = self._rows(t, x_t, self.skip, self.out)
            return skip * x_t + out * prediction
        if self.prediction_type == "epsilon":
            return (x_t - s * prediction) / a
        if self.prediction_type == "sample":
            return prediction
        if self.prediction_type == "v_prediction":
            return a * x_t - s * prediction
        return x_t - s * prediction

    def eps_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """eps_hat, (b, c, h, w), for every prediction type."""
        a, s = self.coefficients(t, x_t)
        if self.prediction_type == "epsilon":
            return prediction
        if self.prediction_type == "v_prediction":
            return a * prediction + s * x_t
        if self.prediction_type == "flow_prediction":
            return x_t + a * prediction
        return self.implied_eps(x_t, self.x0_from(prediction, x_t, t), t)

    def shifted(self, prediction: Tensor, change: Tensor, t: Tensor) -> Tensor:
        """The prediction at the same x_t whose eps_hat is larger by `change`, (b, c, h, w); x0_hat is less by s/a.

        Where x_t is noise alone (a = 0), it is eps whatever is predicted: nothing changes, unless that is eps itself.
        """
        if self.prediction_type == "epsilon" and self.out is None:
            return prediction + change
        a, s = self.coefficients(t, prediction)
        less = torch.where(a > 0, s / a, 0.0) * change
        if self.out is not None:
            return prediction - less / self._rows(t, prediction, self.out)[0]
        if self.prediction_type == "sample":
            return prediction - less
        if self.prediction_type == "v_prediction":
            return prediction + torch.where(a > 0, a * change + s * less, 0.0)
        return prediction + torch.where(a > 0, change + less, 0.0)

    def ddim_sample(
        self, x: Tensor, top: int, count: int, predict: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Clean x0 from x, a state of timestep `top`, by `count` equal deterministic DDIM steps.

        predict: (x_t, t (b,) long) -> the denoiser's prediction, (b, c, h, w).
        """
        steps = np.linspace(top, 0, count, endpoint=False).round().astype(int).tolist()
        for t, following in zip(steps, [*steps[1:], None], strict=True):
            now = torch.full((len(x),), t)
            after = None if following is None else torch.full((len(x),), following)
            x = self.ddim_step(predict(x, now), x, now, after)
        return x

    def ddim_step(self, prediction: Tensor, x_t: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
        """Deterministic step t -> t_next (Song et al. 2021, Eq. 12, eta 0); None goes to clean x0.

        t_next > t inverts (one Euler step of the same ODE backwards).
        """
        x0_hat = self.x0_from(prediction, x_t, t)
        if t_next is None:
            return x0_hat
        return self.add_noise(x0_hat, self.eps_from(prediction, x_t, t), t_next)


def jump(schedule: NoiseSchedule, x: Tensor, t: Tensor, t_next: Tensor, noise: Tensor) -> Tensor:
    """x_t to the noisier x_{t_next} in one step: (a' / a) x + sqrt(s'^2 - (a' s / a)^2) noise, a', s' those of t_next.

    For DDPM schedules sqrt(abar'/abar) x + sqrt(1 - abar'/abar) noise. What held x_t = a x0 + s eps holds x_{t_next}
    again. x, noise: (b, c, h, w); t <= t_next: (b,) long.
    """
    (a, s), (a_next, s_next) = schedule.coefficients(t, x), schedule.coefficients(t_next, x)
    share = (a_next / a).where(_column(t != t_next, x), torch.ones_like(a))  # flow ends without a signal
    return share * x + (s_next**2 - (share * s) ** 2).clamp_min(0).sqrt() * noise


def ancestral_step(
    schedule: NoiseSchedule,
    prediction: Tensor,
    x_t: Tensor,
    t: Tensor,
    t_next: Tensor,
    noise: Tensor,
    eta: float,
) -> Tensor:
    """x_t to the cleaner x_{t_next} (Song et al. 2021, Eq. 12 and 16): eta 0 is DDIM, eta 1 DDPM.

    sigma = eta (s' / s) sqrt(s^2 - (a s' / a')^2), x' = a' x0_hat + sqrt(s'^2 - sigma^2) eps_hat + sigma noise, where
    a', s' are those of t_next; the same for flow schedules. t_next <= t: (b,) long; where they are equal, x_t stays.
    """
    (a, s), (a_next, s_next) = schedule.coefficients(t, x_t), schedule.coefficients(t_next, x_t)
    sigma = eta * s_next / s * (s**2 - (a * s_next / a_next) ** 2).clamp_min(0).sqrt()
    x0_hat, eps_hat = schedule.x0_from(prediction, x_t, t), schedule.eps_from(prediction, x_t, t)
    kept = (s_next**2 - sigma**2).clamp_min(0).sqrt()
    there = a_next * x0_hat + kept * eps_hat + sigma * noise
    return there.where(_column(t != t_next, x_t), x_t)


def _column(rows: Tensor, like: Tensor) -> Tensor:
    """(b,) -> (b, 1, ...), on the device of `like`."""
    return rows.to(like.device).view((-1,) + (1,) * (like.ndim - 1))


def shared_timestep(t: Tensor, threshold: int = 100, intervals: int = 5) -> Tensor:
    """f(t) of E-TSDM (Yang et al. 2023): below `threshold` the left end of t's interval, t elsewhere.

    t: any shape; integer timesteps, or T sigma of flow models. intervals: equally long ones below the threshold; as
    many as the threshold leave integers as they are. Raises ValueError where they do not divide it.
    """
    if threshold < 1 or intervals < 1 or threshold % intervals:
        raise ValueError(f"intervals must divide threshold, both 1 or more; got {intervals} and {threshold}.")
    return (t - t % (threshold // intervals)).where(t < threshold, t)


def sample_noise(sample_id: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one sample, float32 on the CPU: a function of (seed, sample id) and nothing else."""
    import hashlib

    digest = hashlib.blake2b(f"{seed}:{sample_id}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator)
