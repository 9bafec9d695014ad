"""Smooth Diffusion: the variation by hand and by differences, its penalty, and what the fit leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gate.fit import fit, make_fit_config
from gate.fit.smooth_lora import DECAY, SmoothLoraTrainer, directions, variation
from gate.fit.trainer import create_trainer

SMALL: dict[str, Any] = {
    "name": "smooth-lora", "data": "scenes-held-out", "samples": 8, "steps": 2, "check_every": 2, "batch_size": 2,
    "rank": 2, "alpha": 2.0, "rate": 1e-3, "sheet": 0,
}  # fmt: skip
FILE = "pytorch_lora_weights.safetensors"


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_norm_is_that_of_finite_differences_in_eps() -> None:
    a, s, step = 0.8, 0.6, 1e-5
    x0, eps, d = noise(0, 1, 2, 3, 3), noise(1, 1, 2, 3, 3), noise(2, 1, 2, 3, 3)

    def x0_hat(x_t: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * x_t) + 0.1 * x_t.flip(2) ** 2

    def scalar(e: torch.Tensor) -> torch.Tensor:
        return (s * x0_hat(a * x0 + s * e) * d).sum()

    slopes = []
    for i in range(eps.numel()):
        push = torch.zeros_like(eps).flatten()
        push[i] = step
        push = push.view_as(eps)
        slopes.append((scalar(eps + push) - scalar(eps - push)) / (2 * step))
    x_t = (a * x0 + s * eps).requires_grad_()
    found = variation(x0_hat(x_t), x_t, torch.tensor([[[[s]]]], dtype=torch.float64), d)
    torch.testing.assert_close(found, torch.stack(slopes).norm()[None], rtol=1e-6, atol=1e-8)


def test_a_linear_map_has_one_norm_and_its_penalty_goes_to_nothing() -> None:
    """x0_hat = k eps at one level: the norm is s^2 k |d| whatever the noise, and the running mean finds it."""
    mean, penalties = torch.zeros(()), []
    for seed in range(600):
        eps = noise(seed, 8, 4, 4, 4)
        x_t = (0.6 * eps).requires_grad_()
        d = torch.ones_like(eps) / 8
        norm = variation(3 * x_t / 0.6, x_t, torch.full((8, 1, 1, 1), 0.6, dtype=torch.float64), d)
        assert float(norm.std()) < 1e-12
        penalties.append(float((norm - mean).square().mean()))
        mean += DECAY * (norm.mean().float() - mean)
    assert penalties[-1] < 1e-4 * penalties[0]


def test_directions_have_about_unit_norm_and_belong_to_the_row_alone() -> None:
    eps = noise(0, 6, 4, 16, 16).float()
    d = directions(eps)
    assert bool(((d.flatten(1).norm(dim=1) - 1).abs() < 0.1).all())
    assert torch.equal(directions(eps[2:3]), d[2:3])
    assert len({float(row.sum()) for row in d}) == 6


def test_the_loss_is_error_and_penalty_and_the_mean_follows_after_the_step(tiny: Any, scenes: Any) -> None:
    config = make_fit_config({**SMALL, "output": "x"})
    trainer = create_trainer(config, tiny, scenes[:2])
    assert isinstance(trainer, SmoothLoraTrainer)
    try:
        request = tiny.batch(scenes[:2].samples).request(300, 0)
        asked = (request.x_t, request.eps, request.t, ["", "a bird"], [0, 1])
        trainer.begin_step()
        whole = trainer.loss(*asked)
        seen = torch.cat(trainer._seen)
        error = trainer._error(
            trainer.predict(request.x_t, request.t, asked[3], [0, 1]), *asked[:1], *asked[1:3]
        )
        torch.testing.assert_close(
            whole, error + seen.square(), rtol=1e-4, atol=1e-5
        )  # the mean is 0 at first
        assert float(trainer.mean) == 0
        whole.sum().backward()
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trainer.parameters)
        trainer.begin_step()  # an attempt that failed counts for nothing; halves give the same
        for row in range(2):
            trainer.loss(*(part[row : row + 1] for part in asked))  # type: ignore[arg-type]
        trainer.end_step()
        torch.testing.assert_close(trainer.mean.detach(), DECAY * seen.mean(), rtol=1e-4, atol=1e-7)
        with torch.no_grad():  # held out: B = 0 at first, so the fit is the plain backbone
            torch.testing.assert_close(trainer.loss(*asked), trainer.plain_loss(*asked), rtol=1e-4, atol=1e-5)
    finally:
        trainer.release()


@pytest.mark.slow
def test_without_smoothness_it_is_a_plain_lora_and_resumes_with_its_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gate.fit.lora.LoraTrainer.targets", SmoothLoraTrainer.targets)
    plain = {**SMALL, "name": "lora", "text_rate": 0.0}
    ours, theirs = (
        load_file(fit(make_fit_config({**each, "output": str(tmp_path / name)})).path / "over-fitted" / FILE)
        for name, each in (("s", {**SMALL, "smoothness": 0.0}), ("l", plain))
    )
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    smooth = fit(make_fit_config({**SMALL, "output": str(tmp_path / "m")})).path
    state = torch.load(smooth / "checkpoint.pt", weights_only=True)
    assert 0 < float(state["parameters"][-1]) < 1  # the running mean, so that a fit resumes with it
    more = fit(make_fit_config({**SMALL, "steps": 3, "output": str(tmp_path / "m")}), resume=True).path
    whole = fit(make_fit_config({**SMALL, "steps": 3, "check_every": 2, "output": str(tmp_path / "w")})).path
    first, second = (load_file(f / "over-fitted" / FILE) for f in (more, whole))
    for key in first:
        assert torch.equal(first[key], second[key]), key
