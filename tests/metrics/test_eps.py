"""The free score: one error in three coordinates (paper.md, Li et al. 2023)."""

from __future__ import annotations

import pytest
import torch

from gate.metrics.eps import Eps, mean_squared_error
from gate.schedule import NoiseSchedule


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ddpm(prediction_type: str) -> NoiseSchedule:
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    return NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), prediction_type)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_reconstruction_error_is_the_eps_error_times_noise_to_signal(prediction_type):
    """||x0_hat - x0||^2 = (1 - abar) / abar ||eps - eps_hat||^2, whatever the denoiser predicts."""
    schedule, t = ddpm(prediction_type), torch.tensor([50, 300, 900])
    x0, eps = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    x_t = schedule.add_noise(x0, eps, t)
    prediction = noise(3, 4, 8, 8, seed=2)
    eps_hat, x0_hat = schedule.eps_from(prediction, x_t, t), schedule.x0_from(prediction, x_t, t)
    abar = schedule.alpha_bar(t)
    error = Eps().error(eps=eps, eps_hat=eps_hat, x0=x0, x0_hat=x0_hat)
    torch.testing.assert_close(mean_squared_error(x0_hat, x0), (1 - abar) / abar * error)


def test_flow_reconstruction_error_is_sigma_squared_times_the_velocity_error():
    sigma = torch.linspace(0.001, 0.999, 1000, dtype=torch.float64)
    schedule, t = NoiseSchedule(1 - sigma, sigma, "flow_prediction"), torch.tensor([50, 300, 900])
    x0, eps, v_hat = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1), noise(3, 4, 8, 8, seed=2)
    x0_hat = schedule.x0_from(v_hat, schedule.add_noise(x0, eps, t), t)
    torch.testing.assert_close(
        mean_squared_error(x0_hat, x0), sigma[t] ** 2 * mean_squared_error(eps - x0, v_hat)
    )


def test_identities():
    eps = noise(2, 4, 3, 3)
    truth = {"x0": eps, "x0_hat": eps}
    assert (Eps().error(eps=eps, eps_hat=eps, **truth) == 0).all()
    torch.testing.assert_close(Eps().error(eps=eps, eps_hat=eps + 2, **truth), torch.full((2,), 4.0).double())
