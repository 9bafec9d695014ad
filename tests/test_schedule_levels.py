"""Noise levels by timestep, alpha_bar or sigma, and the schedules of flow matching."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import gate
from gate.errors import ConfigurationError, UsageError
from gate.schedule import NoiseSchedule
from gate.screening.config import ScreenConfig, make_config

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
EVERY = torch.arange(1000)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_sigmas_are_the_schedulers_own(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = NoiseSchedule.from_config(FLOW | dict(theirs.config))
    torch.testing.assert_close(ours.sigma(EVERY).float(), theirs.sigmas.flip(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.told(EVERY), theirs.timesteps.flip(0), rtol=0, atol=1e-3)


def test_flow_sigmas_of_a_solver_are_its_own() -> None:
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    theirs.set_timesteps(1000)
    ours = NoiseSchedule.from_config(theirs.config)
    top = theirs.sigmas[0]
    nearest = ours.nearest(sigma=float(top))
    assert abs(float(ours.sigma(torch.tensor([nearest]))) - float(top)) < 2e-3


def test_a_dynamic_shift_is_that_of_the_image_size() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        ours = NoiseSchedule.from_config(FLOW | dict(theirs.config), tokens=tokens)
        s = (EVERY.double() + 1) / 1000
        torch.testing.assert_close(ours.sigma(EVERY), math.exp(mu) / (math.exp(mu) + (1 / s - 1)))


def test_an_inverted_schedule_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="noisier as t grows"):
        NoiseSchedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True})


def _ddpm() -> NoiseSchedule:
    return NoiseSchedule.from_config(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )


@pytest.mark.parametrize("schedule", [_ddpm(), NoiseSchedule.flow(3.0)])
def test_timestep_alpha_bar_and_sigma_agree(schedule: NoiseSchedule) -> None:
    for t in (1, 50, 300, 900):
        one = torch.tensor([t])
        assert schedule.nearest(alpha_bar=float(schedule.alpha_bar(one))) == t
        assert schedule.nearest(sigma=float(schedule.sigma(one))) == t
    with pytest.raises(UsageError, match="has no sigma of 1.5"):
        schedule.nearest(sigma=1.5)


def test_the_config_takes_noise_levels_in_one_way() -> None:
    schedule = _ddpm()
    wanted = float(schedule.alpha_bar(torch.tensor([300])))
    assert make_config({"alpha_bar": str(wanted)}).levels(schedule) == (300,)
    assert make_config({"sigma": "0.2, 0.5"}).levels(schedule) == tuple(
        schedule.nearest(sigma=s) for s in (0.2, 0.5)
    )
    assert ScreenConfig().levels(schedule) == (50, 300)
    with pytest.raises(UsageError, match="one way"):
        make_config({"alpha_bar": "0.5", "timesteps": "100"})
    with pytest.raises(UsageError, match="distinct timesteps"):
        make_config({"sigma": "0.5,0.5001"}).levels(schedule)


def test_noise_and_prediction_of_flow_are_consistent() -> None:
    schedule = NoiseSchedule.flow(3.0)
    x0, eps = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 4, 8, 8, dtype=torch.float64)
    t = torch.tensor([0, 999])
    x_t = schedule.add_noise(x0, eps, t)
    torch.testing.assert_close(schedule.x0_from(eps - x0, x_t, t), x0)
    torch.testing.assert_close(schedule.eps_from(eps - x0, x_t, t), eps)


@pytest.mark.slow
def test_a_screening_at_an_alpha_bar_is_one_at_its_timestep(tmp_path: Path) -> None:
    def run(name: str, **levels: object) -> dict[str, Any]:
        return gate.screen(
            techniques=["shared-timestep"],
            samples=8,
            seeds=1,
            probes=[],
            image_samples=0,
            resamples=200,
            device="cpu",
            output=str(tmp_path / name),
            **levels,
        ).results

    plain = run("t", timesteps=[50])
    level = run("a", alpha_bar=plain["axes"]["alpha_bar"])
    noise = run("s", sigma=plain["axes"]["sigma"])
    assert plain["axes"] == level["axes"] == noise["axes"]
    assert plain["ranking"][0]["score"] == level["ranking"][0]["score"] == noise["ranking"][0]["score"]
    assert plain["axes"]["sigma"][0] ** 2 + plain["axes"]["alpha_bar"][0] == pytest.approx(1)
    assert level["config"]["timesteps"] == [50] and level["config"]["alpha_bar"] is None  # what resume reads
