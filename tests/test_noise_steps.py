"""Steps along the noise axis and what is told of it: jump, ancestral step, E-TSDM's f(t), targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gate.schedule import NoiseSchedule, ancestral_step, jump, shared_timestep

EVERY = ["epsilon", "v_prediction", "sample", "flow"]


def made(kind: str) -> NoiseSchedule:
    if kind == "flow":
        return NoiseSchedule.flow(shift=3.0)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    return NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), kind)  # type: ignore[arg-type]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", EVERY)
def test_the_target_is_what_gives_back_x0_and_eps(kind: str) -> None:
    schedule, t = made(kind), torch.tensor([1, 300, 950])
    x0, eps = noise(0, 3, 4, 5, 5), noise(1, 3, 4, 5, 5)
    x_t, target = schedule.add_noise(x0, eps, t), schedule.target(x0, eps, t)
    torch.testing.assert_close(schedule.x0_from(target, x_t, t), x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(schedule.eps_from(target, x_t, t), eps, rtol=1e-6, atol=1e-6)


def test_a_jump_has_the_variance_of_the_noisier_level() -> None:
    """(1 - abar_r) abar_b / abar_r + 1 - abar_b / abar_r = 1 - abar_b; the signal is sqrt(abar_b)."""
    schedule = made("epsilon")
    r, b = torch.tensor([50, 500, 10]), torch.tensor([70, 700, 999])
    one, nothing = torch.ones(3, 1, 1, 1, dtype=torch.float64), torch.zeros(3, 1, 1, 1, dtype=torch.float64)
    share = jump(schedule, one, r, b, nothing).flatten()
    drawn = jump(schedule, nothing, r, b, one).flatten()
    abar_r, abar_b = schedule.alpha_bar(r), schedule.alpha_bar(b)
    torch.testing.assert_close(share, (abar_b / abar_r).sqrt())
    torch.testing.assert_close(drawn, (1 - abar_b / abar_r).sqrt())
    torch.testing.assert_close((1 - abar_r) * share**2 + drawn**2, 1 - abar_b)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_a_jump_keeps_signal_and_noise_of_any_schedule(kind: str) -> None:
    schedule, r, b = made(kind), torch.tensor([50, 500]), torch.tensor([70, 999])
    n = 40_000
    x0, eps, fresh = (noise(k, 2, 1, 200, n // 200) for k in range(3))
    x_b = jump(schedule, schedule.add_noise(x0, eps, r), r, b, fresh)
    (a, s) = schedule.coefficients(b, x0)
    rest = x_b - a * x0
    torch.testing.assert_close(rest.std(dim=(1, 2, 3)), s.flatten(), rtol=0.02, atol=1e-3)
    assert float((rest * x0).mean().abs()) < 0.02


def test_ancestral_steps_are_those_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    schedule = NoiseSchedule.from_config(scheduler.config)
    x, prediction, fresh = (noise(k, 1, 4, 6, 6) for k in range(3))
    for eta in (0.0, 0.1, 1.0):
        theirs = scheduler.step(prediction, 700, x, eta=eta, variance_noise=fresh).prev_sample
        t, after = torch.tensor([700]), torch.tensor([600])
        ours = ancestral_step(schedule, prediction, x, t, after, fresh, eta)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_an_ancestral_step_of_a_perfect_prediction_lands_on_its_level(kind: str) -> None:
    schedule, t, after = made(kind), torch.tensor([700, 60]), torch.tensor([500, 40])
    x0, eps, fresh = (noise(k, 2, 1, 100, 100) for k in range(3))
    x_t, target = schedule.add_noise(x0, eps, t), schedule.target(x0, eps, t)
    landed = ancestral_step(schedule, target, x_t, t, after, fresh, 1.0)
    a, s = schedule.coefficients(after, x0)
    torch.testing.assert_close((landed - a * x0).std(dim=(1, 2, 3)), s.flatten(), rtol=0.03, atol=1e-3)
    plain = ancestral_step(schedule, target, x_t, t, after, fresh, 0.0)
    torch.testing.assert_close(plain, schedule.ddim_step(target, x_t, t, after))
    torch.testing.assert_close(
        ancestral_step(schedule, target, x_t, t, t, fresh, 1.0), x_t, rtol=1e-5, atol=1e-6
    )


def test_shared_timesteps_by_hand_and_the_identity() -> None:
    t = torch.tensor([0, 19, 20, 50, 99, 100, 101, 999])
    assert shared_timestep(t).tolist() == [0, 0, 20, 40, 80, 100, 101, 999]
    every = torch.arange(1000)
    assert torch.equal(shared_timestep(every, 100, 100), every)
    assert torch.equal(shared_timestep(every)[100:], every[100:])
    told = torch.tensor([55.3, 99.9, 100.0, 139.2])
    assert shared_timestep(told).tolist()[:2] == [40.0, 80.0]
    assert torch.equal(shared_timestep(told)[2:], told[2:])
    with pytest.raises(ValueError, match="divide"):
        shared_timestep(t, 100, 3)


def test_what_is_told_already_is_told_as_it_is() -> None:
    schedule = made("flow")
    assert schedule.told(torch.tensor([40.0])).tolist() == [40.0]
    assert schedule.told(torch.tensor([10])).tolist() != [10.0]
