"""The latent that the denoiser itself says leads to the image, in place of random noise."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Conditioning, Request


@dataclass(kw_only=True)
class DdimInversion(Technique):
    """DDIM inversion x0 -> x_t under the neutral prompt (Song et al. 2021, Eq. 12 run backwards, eta
    0):

    x_{i+1} = a_{i+1} x0_hat(x_i, i) + s_{i+1} eps_hat(x_i, i), from x0 at timestep 0, in `steps` equal steps;
    0 is vanilla. The noise seed plays no part. x0 is read as the state at timestep 0, as usual.
    """

    name = "ddim-inversion"
    summary = "Start from the DDIM inversion of the image, not from random noise."
    source = "Song et al. 2021, DDIM (arXiv 2010.02502)"
    families = frozenset({"text", "unconditional"})
    leak = (
        "the latent is computed from the input by the denoiser itself, so running it back returns the input"
    )
    replaces_latent = True
    seedless = True
    neutral: ClassVar = {"steps": 0}

    steps: int = 6

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, got {self.steps}.")

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=self.steps + 1.0, start=float(self.steps))

    def start(self, request: Request) -> Request:
        if self.steps == 0 or request.origin != "noised":
            return request
        x0 = request.batch.backbone.schedule.clean(request.batch.x0)
        text = request.conditioning.with_text(request.batch.neutral)
        levels = [request.t * k // self.steps for k in range(self.steps + 1)]
        return request.moved(ddim_path(request, x0, levels, text), request.t)


def ddim_path(request: Request, x: Tensor, levels: list[Tensor], conditioning: Conditioning) -> Tensor:
    """x, (b, c, h, w), from levels[0] to levels[-1] along the deterministic DDIM path, one call a step."""
    backbone = request.batch.backbone
    for t, after in itertools.pairwise(levels):
        here = request.with_(
            x_t=x, t=t, t_condition=t, conditioning=conditioning, origin="sampled", features=False
        )
        x = backbone.schedule.ddim_step(backbone.denoise(here).prediction, x, t, after)
    return x
