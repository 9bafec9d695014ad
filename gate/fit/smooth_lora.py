"""Fit a Smooth Diffusion LoRA: the prediction varies as much as its noise does, whatever the noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gate.fit.lora import LoraTrainer
from gate.schedule import sample_noise

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet

DECAY = 0.01  # of the running mean of the variation, per step


class SmoothLoraTrainer(LoraTrainer):
    """Guo et al. 2024, section 3: L = L_base + smoothness * E( ||grad_eps(s_t x0_hat . d)||_2 - a )^2.

    d: a random image of about unit norm, randn / sqrt(c h w); a: running mean of the norm from 0, decay 0.01. LoRA of
    rank 8 on the attention's projections, alpha = rank, 1e-4 (Stable Diffusion, 30,000 steps in the paper, 1500 here).
    Small denoisers: 1e-3, 600 steps. Ours: a is brought up to date after the step, so that halved batches change no
    result; d is drawn from the noise that it belongs to; held out, where no a may move between two looks, the spread
    of the norm over an image's noise levels takes the penalty's place.
    """

    together: ClassVar[bool] = True
    measure = "eps error and spread of the variation"
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        super().__init__(backbone, config, samples)
        self.smoothness = config.smoothness
        self.mean = nn.Parameter(torch.zeros((), device=backbone.device), requires_grad=False)
        self.groups.append({"params": [self.mean], "lr": 0.0})  # a checkpoint keeps what is in a group
        self._seen: list[Tensor] = []

    def _settle(self, config: FitConfig, small: bool) -> None:
        self.rank = config.rank or 8
        self.alpha = config.alpha or float(self.rank)
        self.rate = config.rate or (1e-3 if small else 1e-4)
        self.text_rate = config.text_rate or 0.0
        self.steps = 600 if small else 1500

    def begin_step(self) -> None:
        self._seen.clear()

    def end_step(self) -> None:
        if self._seen:
            self.mean.add_(DECAY * (torch.cat(self._seen).mean() - self.mean))

    def loss(self, x_t: Tensor, eps: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        """(b,): the eps error and the penalty. Without gradients: the spread over these rows instead of it."""
        return self._smooth(lambda x: self.predict(x, self.told(t), texts, rows), x_t, eps, t)

    def plain_loss(self, x_t: Tensor, eps: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        return self._smooth(lambda x: self.plain(x, t, texts), x_t, eps, t)

    def _smooth(self, predict: Callable[[Tensor], Tensor], x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if not self.smoothness:
            return self._error(predict(x_t), x_t, eps, t)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        learning = torch.is_grad_enabled()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
            x_t = x_t.detach().requires_grad_()
            prediction = predict(x_t)
            x0_hat = self.backbone.schedule.x0_from(prediction, x_t, t)
            _, s = self.backbone.schedule.coefficients(t, x_t)
            norm = variation(x0_hat, x_t, s, directions(eps), differentiable=learning)
        if learning:
            self._seen.append(norm.detach())
        centre = self.mean if learning else norm.mean()
        error: Tensor = self._error(prediction, x_t, eps, t) + self.smoothness * (norm - centre).square()
        return error if learning else error.detach()

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "smoothness": self.smoothness}


def variation(
    x0_hat: Tensor, x_t: Tensor, noise: Tensor, direction: Tensor, *, differentiable: bool = False
) -> Tensor:
    """||grad_eps(s_t x0_hat . d)||_2 of each row, (b,) >= 0: how far x0_hat moves along d as the noise does.

    x0_hat: (b, c, h, w), made of x_t = a_t x0 + s_t eps, which asks for gradients; eps enters by x_t alone, so grad_eps
    is s_t grad_{x_t}. noise: s_t, (b, 1, 1, 1). direction: d, (b, c, h, w). differentiable: by the weights once more.
    """
    (gradient,) = torch.autograd.grad((noise * x0_hat * direction).sum(), x_t, create_graph=differentiable)
    return (noise * gradient).flatten(1).norm(dim=1)


def directions(eps: Tensor) -> Tensor:
    """d of each row, randn / sqrt(c h w), a function of the row's noise alone. eps: (b, c, h, w)."""
    shape = tuple(eps.shape[1:])
    keys = [hashlib.blake2b(row.cpu().float().numpy().tobytes()).hexdigest() for row in eps]
    return torch.stack([sample_noise(key, 0, shape) for key in keys]).to(eps) / eps[0].numel() ** 0.5
