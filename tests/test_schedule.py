"""Noise schedules: conversions agree with each other and with diffusers."""

from __future__ import annotations

import pytest
import torch

from gate.errors import ConfigurationError, UsageError
from gate.schedule import NoiseSchedule, PredictionType, sample_noise

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


def make(prediction: PredictionType = "epsilon") -> NoiseSchedule:
    return NoiseSchedule.from_config({**SD, "prediction_type": prediction})


def flow() -> NoiseSchedule:
    sigma = torch.linspace(0.001, 0.999, 1000, dtype=torch.float64)
    return NoiseSchedule(1 - sigma, sigma, "flow_prediction")


def target(schedule: NoiseSchedule, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What a perfect denoiser predicts, from each type's own definition."""
    a, s = schedule.coefficients(t, x0)
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": a * eps - s * x0,
        "flow_prediction": eps - x0,
    }[schedule.prediction_type]


@pytest.mark.parametrize("schedule", [make("epsilon"), make("v_prediction"), make("sample"), flow()])
def test_a_perfect_prediction_gives_back_x0_and_eps(schedule: NoiseSchedule) -> None:
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 4, 5, 5, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1, 300, 990])
    x_t = schedule.add_noise(x0, eps, t)
    prediction = target(schedule, x0, eps, t)
    torch.testing.assert_close(schedule.x0_from(prediction, x_t, t), x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.eps_from(prediction, x_t, t), eps, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.implied_eps(x_t, x0, t), eps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [make("epsilon"), make("v_prediction")])
def test_x0_error_is_eps_error_over_snr(schedule: NoiseSchedule) -> None:
    """paper.md: ||x0_hat - x0||^2 = (1 - abar) / abar ||eps - eps_hat||^2."""
    g = torch.Generator().manual_seed(1)
    x0, eps, wrong = (torch.randn(2, 4, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([50, 700])
    x_t = schedule.add_noise(x0, eps, t)
    x0_error = (schedule.x0_from(wrong, x_t, t) - x0).square().sum((1, 2, 3))
    eps_error = (schedule.eps_from(wrong, x_t, t) - eps).square().sum((1, 2, 3))
    abar = schedule.alpha_bar(t)
    torch.testing.assert_close(x0_error, (1 - abar) / abar * eps_error, rtol=1e-9, atol=0)


def test_flow_x0_error_is_sigma_squared_times_v_error() -> None:
    schedule, t = flow(), torch.tensor([10, 800])
    g = torch.Generator().manual_seed(2)
    x0, eps, wrong = (torch.randn(2, 4, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    x_t = schedule.add_noise(x0, eps, t)
    x0_error = (schedule.x0_from(wrong, x_t, t) - x0).square().sum((1, 2, 3))
    v_error = (wrong - (eps - x0)).square().sum((1, 2, 3))
    torch.testing.assert_close(x0_error, schedule.noise[t] ** 2 * v_error, rtol=1e-9, atol=0)


def test_coefficients_and_ddim_step_are_those_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    theirs.set_timesteps(10)
    ours = make()
    torch.testing.assert_close(ours.signal.square(), theirs.alphas_cumprod.double(), rtol=1e-6, atol=0)
    g = torch.Generator().manual_seed(3)
    x, prediction = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 4, 8, 8, generator=g)
    now, after = int(theirs.timesteps[3]), int(theirs.timesteps[4])
    expected = theirs.step(prediction, now, x).prev_sample
    step = ours.ddim_step(prediction, x, torch.tensor([now]), torch.tensor([after]))
    torch.testing.assert_close(step, expected, rtol=1e-5, atol=1e-5)


def test_a_ddim_step_there_and_back_with_one_prediction_is_the_identity() -> None:
    schedule, x = (
        make(),
        torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)),
    )
    prediction = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    low, high = torch.tensor([100]), torch.tensor([400])
    back = schedule.ddim_step(prediction, schedule.ddim_step(prediction, x, high, low), low, high)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)


def test_a_reversed_schedule_is_refused() -> None:
    schedule = make()
    with pytest.raises(ConfigurationError, match="noisier as t grows"):
        NoiseSchedule(schedule.signal.flip(0), schedule.noise.flip(0), "epsilon")


def test_unknown_prediction_type_and_timestep_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="one of epsilon"):
        NoiseSchedule.from_config({**SD, "prediction_type": "score"})
    with pytest.raises(UsageError, match=r"choose one in 0 \.\.\. 999"):
        make().check(1000)


def test_noise_is_a_function_of_seed_and_sample_alone() -> None:
    a = sample_noise("abc", 0, (4, 8, 8))
    torch.manual_seed(7)
    assert torch.equal(a, sample_noise("abc", 0, (4, 8, 8)))
    assert not torch.equal(a, sample_noise("abc", 1, (4, 8, 8)))
    assert not torch.equal(a, sample_noise("abd", 0, (4, 8, 8)))
    many = torch.stack([sample_noise(str(i), 0, (4, 8, 8)) for i in range(200)])
    assert abs(float(many.mean())) < 0.01 and abs(float(many.std()) - 1) < 0.01


@pytest.mark.parametrize("schedule", [make("epsilon"), make("v_prediction"), make("sample"), flow()])
def test_a_shifted_prediction_implies_the_shifted_noise_at_the_same_latent(schedule: NoiseSchedule) -> None:
    g = torch.Generator().manual_seed(0)
    x_t, prediction, change = (torch.randn(3, 4, 5, 5, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([1, 300, 990])
    before, after = (
        schedule.eps_from(p, x_t, t) for p in (prediction, schedule.shifted(prediction, change, t))
    )
    torch.testing.assert_close(after - before, change, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["v_prediction", "sample", "flow_prediction"])
def test_at_noise_alone_a_shift_changes_nothing_and_stays_finite(kind: PredictionType) -> None:
    a = torch.tensor([0.5, 0.0], dtype=torch.float64)
    schedule = NoiseSchedule(a, torch.tensor([0.5, 1.0], dtype=torch.float64), kind)
    prediction, change = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    found = schedule.shifted(prediction, change, torch.tensor([0, 1]))
    assert not torch.equal(found[0], prediction[0]) and torch.equal(found[1], prediction[1])
