"""Every scheduler of diffusers: its own noise levels, or a refusal; what the networks say, against its own steps."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from odd_pipelines import text_unet
from small_pipelines import ddpm
from typer.testing import CliRunner

import gate
from gate.cli import app
from gate.errors import ConfigurationError, UsageError
from gate.schedule import NoiseSchedule
from gate.schedulers import BETAS, CONSISTENCY, EDMS, FLOWS, TRIGFLOW
from gate.screening.config import ScreenConfig, make_config


def _schedulers() -> dict[str, Any]:
    """Every scheduler that this diffusers builds without arguments and without further packages."""
    made = {}
    for name in dir(diffusers):
        cls = getattr(diffusers, name)
        if name.endswith("Scheduler") and inspect.isclass(cls):
            try:
                made[name] = cls()
            except (TypeError, ImportError):
                continue
    return made


SCHEDULERS = _schedulers()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_read_as_it_reads_itself_or_refused(name: str) -> None:
    scheduler = SCHEDULERS[name]
    config = {**scheduler.config, "_class_name": name}
    if name not in BETAS | FLOWS | EDMS | {CONSISTENCY, TRIGFLOW}:
        with pytest.raises(ConfigurationError, match=f"{name} is not among the schedulers"):
            NoiseSchedule.from_config(config)
        return
    ours = NoiseSchedule.from_config(config)
    every = torch.arange(len(ours))
    if name in BETAS:
        torch.testing.assert_close(
            ours.alpha_bar(every).float(), scheduler.alphas_cumprod.float(), rtol=0, atol=3e-6
        )
    elif name in FLOWS:
        torch.testing.assert_close(ours.sigma(every).float(), scheduler.sigmas.flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rescaled", [False, True])
def test_cogvideox_s_ratio_is_shifted(rescaled: bool) -> None:
    theirs = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", snr_shift_scale=4.0, rescale_betas_zero_snr=rescaled
    )
    ours = NoiseSchedule.from_config({**theirs.config, "_class_name": "CogVideoXDDIMScheduler"})
    torch.testing.assert_close(
        ours.alpha_bar(torch.arange(1000)), theirs.alphas_cumprod.double(), rtol=0, atol=3e-6
    )


@pytest.mark.parametrize(
    "options", [{}, {"sigma_schedule": "exponential"}, {"prediction_type": "v_prediction"}]
)
def test_edm_is_its_scheduler_s_preconditioning(options: dict[str, Any]) -> None:
    theirs = diffusers.EDMDPMSolverMultistepScheduler(**options)
    ours = NoiseSchedule.from_config({**theirs.config, "_class_name": "EDMDPMSolverMultistepScheduler"})
    every = torch.arange(1000)
    torch.testing.assert_close(ours.sigma(every).float(), theirs.sigmas[:-1].flip(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(ours.told(every), theirs.timesteps.flip(0), rtol=0, atol=1e-4)
    g = torch.Generator().manual_seed(0)
    x0, eps, output = torch.randn(3, 5, 4, 2, 2, generator=g, dtype=torch.float64).unbind(0)
    t = torch.tensor([0, 50, 300, 800, 999])
    sigma = ours.sigma(t).view(-1, 1, 1, 1)
    state = x0 + sigma * eps
    x_t = ours.add_noise(x0, eps, t)
    torch.testing.assert_close(x_t, theirs.precondition_inputs(state, sigma))
    x0_hat = ours.x0_from(output, x_t, t)
    torch.testing.assert_close(x0_hat, theirs.precondition_outputs(state, output, sigma))
    torch.testing.assert_close(ours.add_noise(x0_hat, ours.eps_from(output, x_t, t), t), x_t)
    torch.testing.assert_close(ours.alpha_bar(t), (1 / (1 + sigma**2)).flatten())
    torch.testing.assert_close(ours.clean(x0), theirs.precondition_inputs(x0, 0.0))
    torch.testing.assert_close(ours.x0_from(ours.target(x0, eps, t), x_t, t), x0)
    moved = ours.eps_from(ours.shifted(output, eps, t), x_t, t)
    torch.testing.assert_close(moved, ours.eps_from(output, x_t, t) + eps)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("DDPMScheduler", True),
        ("FlowMatchEulerDiscreteScheduler", True),
        ("EDMEulerScheduler", False),
        (CONSISTENCY, False),
        (TRIGFLOW, False),
    ],
)
def test_where_nothing_told_counts_timesteps_the_timestep_itself_is_shared(name: str, counts: bool) -> None:
    from types import SimpleNamespace

    from gate.registry import create_technique

    schedule = NoiseSchedule.from_config({**SCHEDULERS[name].config, "_class_name": name})
    assert schedule.counts == counts
    technique: Any = create_technique("shared-timestep[threshold=20,intervals=1]")
    request: Any = SimpleNamespace(
        batch=SimpleNamespace(backbone=SimpleNamespace(schedule=schedule)), t_condition=torch.tensor([7, 30])
    )
    request.with_ = lambda t_condition: t_condition
    shared = technique.denoise(request, lambda told: told)
    told = schedule.told(shared)
    plain = schedule.told(torch.tensor([0, 30]))
    assert float(told[1]) == float(plain[1])
    assert float(told[0]) == (0.0 if counts else float(plain[0]))


def test_consistency_models_are_their_scheduler_s_own_scaling() -> None:
    theirs = diffusers.CMStochasticIterativeScheduler()
    ours = NoiseSchedule.from_config({**theirs.config, "_class_name": CONSISTENCY})
    every = torch.arange(40)
    torch.testing.assert_close(ours.sigma(every), theirs.sigmas.flip(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.told(every), theirs.timesteps.flip(0).float(), rtol=1e-4, atol=1e-3)
    g = torch.Generator().manual_seed(0)
    x0, eps, output = torch.randn(3, 2, 4, 2, 2, generator=g, dtype=torch.float64).unbind(0)
    t = torch.tensor([1, 30])
    sigma = ours.sigma(t).view(-1, 1, 1, 1)
    skip, out = theirs.get_scalings_for_boundary_condition(sigma)
    x_t = ours.add_noise(x0, eps, t)
    torch.testing.assert_close(ours.x0_from(output, x_t, t), skip * (x0 + sigma * eps) + out * output)


def test_trigflow_is_flow_as_the_network_knows_it() -> None:
    """SANA-Sprint's pipeline, written out: from its state through the transformer's input to what it denoised."""
    theirs = diffusers.SCMScheduler()
    ours = NoiseSchedule.from_config({**theirs.config, "_class_name": TRIGFLOW})
    data = theirs.config.sigma_data
    g = torch.Generator().manual_seed(0)
    x0, eps, output = torch.randn(3, 3, 4, 2, 2, generator=g, dtype=torch.float64).unbind(0)
    t = torch.tensor([50, 300, 900])
    s = ours.sigma(t).view(-1, 1, 1, 1)
    angle = torch.atan2(s, 1 - s)  # sigma = sin / (sin + cos)
    state = data * (angle.cos() * x0 + angle.sin() * eps)
    norm = (s**2 + (1 - s) ** 2).sqrt()
    given = state / data * norm
    torch.testing.assert_close(ours.add_noise(x0, eps, t), given)
    torch.testing.assert_close(ours.told(t).double(), s.flatten(), rtol=0, atol=1e-7)
    trig = ((1 - 2 * s) * given + (1 - 2 * s + 2 * s**2) * output) / norm * data
    denoised = (angle.cos() * state - angle.sin() * trig) / data
    torch.testing.assert_close(ours.x0_from(output, given, t), denoised)


def test_at_zero_signal_a_prediction_of_noise_is_not_asked_for_the_image() -> None:
    eps = NoiseSchedule.from_config({**ddpm(rescale_betas_zero_snr=True).config})
    v = NoiseSchedule.from_config(
        {**ddpm(rescale_betas_zero_snr=True, prediction_type="v_prediction").config}
    )
    assert (len(eps), len(v)) == (999, 1000)
    assert torch.equal(eps.signal, v.signal[:-1]) and float(v.signal[-1]) == 0.0
    with pytest.raises(UsageError, match="choose one in 0 ... 998 .*noise alone"):
        eps.check(999)
    x, last = torch.randn(1, 4, 2, 2), torch.tensor([len(eps) - 1])
    assert bool(eps.x0_from(x, x, last).isfinite().all()) and bool(v.x0_from(x, x, last + 1).isfinite().all())


@pytest.mark.parametrize("steps", [100, 200, 1000, 4000])
def test_default_noise_levels_are_shares_of_the_schedule(steps: int) -> None:
    schedule = NoiseSchedule.from_config({**ddpm(num_train_timesteps=steps).config})
    assert ScreenConfig().levels(schedule) == (steps // 20, 3 * steps // 10)
    assert make_config({"timesteps": "7"}).levels(schedule) == (7,)
    assert NoiseSchedule.flow(steps=4).at(0.05) == 1, "never the clean level"


@pytest.mark.slow
def test_a_short_schedule_is_screened_and_extracted_at_its_defaults(tmp_path: Path) -> None:
    folder = text_unet(tmp_path / "model", "StableDiffusionPipeline", ddpm(num_train_timesteps=100))
    done = gate.screen(
        techniques=["prompt"],
        backbone=str(folder),
        samples=8,
        seeds=1,
        probes=[],
        image_samples=0,
        resamples=200,
        device="cpu",
        workers=1,
        output=str(tmp_path / "run"),
    )
    assert done.results["axes"]["timestep"] == [5, 30] == done.results["config"]["timesteps"]
    backbone: Any = gate.load_backbone(str(folder), device="cpu")
    sample = backbone.extract([torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()], layers="mid")
    named = backbone.extract([torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()], layers="mid", timestep=5)
    assert torch.equal(sample["mid"], named["mid"])


SERVED = {
    "edm": (diffusers.EDMDPMSolverMultistepScheduler(), 50, (0.002, 80.0)),
    "edm-euler": (diffusers.EDMEulerScheduler(), 50, (0.002, 80.0)),
    "consistency": (diffusers.CMStochasticIterativeScheduler(), 2, (0.002, 80.0)),
    "zero-snr": (ddpm(rescale_betas_zero_snr=True), 50, (0.0, 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVED)
def test_a_model_of_another_schedule_is_screened(kind: str, tmp_path: Path) -> None:
    scheduler, level, (low, high) = SERVED[kind]
    folder = text_unet(tmp_path / "model", "StableDiffusionPipeline", scheduler)
    done = gate.screen(
        techniques=["prompt", "ddim-inversion[steps=2]"],
        backbone=str(folder),
        samples=8,
        seeds=1,
        timesteps=[level],
        probes=[],
        image_samples=1,
        strength=1.0,
        resamples=200,
        device="cpu",
        workers=1,
        output=str(tmp_path / "run"),
    )
    assert not done.results["skipped"]
    axes = done.results["axes"]
    assert low < axes["sigma"][0] < high and 0 < axes["alpha_bar"][0] < 1
    assert all(math.isfinite(row["score"]) for row in done.results["ranking"])


def test_a_scheduler_of_unknown_noise_levels_is_refused_by_the_list_and_by_loading_alike(
    tmp_path: Path,
) -> None:
    folder = text_unet(tmp_path, "StableDiffusionPipeline", diffusers.IPNDMScheduler())
    listed = CliRunner().invoke(app, ["list", "layers", "--backbone", str(folder)])
    assert listed.exit_code == 3 and "IPNDMScheduler is not among the schedulers" in listed.stderr
    with pytest.raises(ConfigurationError, match="IPNDMScheduler is not among the schedulers"):
        gate.load_backbone(str(folder), device="cpu")
