"""Cycles of noise and denoising in which the image's own inversion is held fast along its edges: COW."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Batch, Request

Mask = Literal["edges", "everywhere", "nowhere"]
NOISE = 1 << 44  # of the cycles: far from the seeds of a screen


@dataclass(kw_only=True)
class Cow(Technique):
    """Cyclic One-Way Diffusion (Wang et al. 2023, section 3), for extraction at t (ours): r = t, b = t + window.

    The input is inverted by DDIM up to b and its latents are kept. The start is the noised latent with the inverted
    one inside the mask. Each cycle disturbs, one jump from r up to b, x_b = sqrt(abar_b / abar_r) x_r + sqrt(1 - abar_b
    / abar_r) n, and constructs: `construct` steps down to r of stochasticity `eta`, after each of which the masked
    latents are the inverted ones again. The features at r follow. inversion: DDIM steps from the image to r; from r to
    b there are as many as `construct`. cycles: 0 leaves the start as it is. window: timesteps from r to b, cut at the
    schedule's end. eta: 1 draws all of the posterior's noise, 0 is DDIM. mask: the image's canny edges, grown by
    `dilation` latent cells, or everywhere, or nowhere. The paper: 10 steps, r = 0.5 and b = 0.7 of the schedule, 10
    cycles, a box around the object, and a last descent to the image, which features at r do without.
    """

    name = "cow"
    summary = "Disturb and denoise in cycles that keep the image's inversion along its edges."
    source = "Wang et al. 2023, Cyclic One-Way Diffusion (arXiv 2306.08247)"
    families = frozenset({"text", "unconditional"})
    leak = "inside the mask the latent is computed from the input by the denoiser itself"
    replaces_latent = True
    listed = False
    unlisted = "it takes 11 denoiser calls where vanilla takes one; name it to screen it"
    neutral: ClassVar = {"cycles": 0, "mask": "nowhere"}

    inversion: int = 4
    cycles: int = 2
    window: int = 20
    construct: int = 2
    eta: float = 1.0
    mask: Mask = "edges"
    dilation: int = 1

    def __post_init__(self) -> None:
        if min(self.inversion, self.window, self.construct) < 1 or min(self.cycles, self.dilation) < 0:
            raise ValueError("inversion, window and construct are 1 or more, cycles and dilation 0 or more.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta lies in 0 ... 1, got {self.eta}.")
        if self.mask not in get_args(Mask):
            raise ValueError(f"mask must be {', '.join(get_args(Mask))}, got {self.mask!r}.")

    @property
    def cost(self) -> Cost:
        inverted = 0 if self.mask == "nowhere" else self.inversion + self.construct * (self.cycles > 0)
        start = float(inverted + self.cycles * self.construct)
        return Cost(per_pass=start + 1, start=start)

    def start(self, request: Request) -> Request:
        if request.origin != "noised" or (self.cycles == 0 and self.mask == "nowhere"):
            return request
        mask, kept = self.mask_of(request.batch), self.trajectory(request)
        x = pasted(request.x_t, kept, 0, mask)
        for cycle in range(self.cycles):
            x = self._cycle(request, x, kept, mask, cycle)
        return request.moved(x, request.t)

    def mask_of(self, batch: Batch) -> Tensor:
        """(b, 1, h, w): 1 where the inverted latent replaces the other (cells that an edge crosses), else 0."""
        import torch
        from torch.nn.functional import adaptive_max_pool2d, max_pool2d

        from gate.adapters.drawing import canny

        b, _, h, w = batch.x0.shape
        if self.mask != "edges":
            return torch.full((b, 1, h, w), float(self.mask == "everywhere")).to(batch.x0)
        drawn = torch.stack([torch.from_numpy(canny(s.image)[..., 0] > 0) for s in batch.samples])
        cells = adaptive_max_pool2d(drawn.float()[:, None], (h, w))
        return max_pool2d(cells, 2 * self.dilation + 1, stride=1, padding=self.dilation).to(batch.x0)

    def levels(self, request: Request) -> list[Tensor]:
        """r ... b, the timesteps that are stepped through, (b,) long each; up to the schedule's end."""
        top = (request.t + self.window).clamp(max=len(request.batch.backbone.schedule) - 1)
        return [request.t + (top - request.t) * k // self.construct for k in range(self.construct + 1)]

    def trajectory(self, request: Request) -> list[Tensor]:
        """The inverted latents at `levels`, (b, c, h, w) each; only the first without cycles, none without a mask."""
        from gate.techniques.ddim_inversion import ddim_path

        if self.mask == "nowhere":
            return []
        text = request.conditioning.with_text(request.batch.neutral)
        below = [request.t * k // self.inversion for k in range(self.inversion + 1)]
        clean, levels = request.batch.backbone.schedule.clean(request.batch.x0), self.levels(request)
        kept = [ddim_path(request, clean, below, text)]
        for k in range(self.construct if self.cycles else 0):
            kept.append(ddim_path(request, kept[-1], levels[k : k + 2], text))
        return kept

    def _cycle(self, request: Request, x: Tensor, kept: list[Tensor], mask: Tensor, cycle: int) -> Tensor:
        """x_r after one jump to b and the descent back, masked latents replaced after every step."""
        from gate.schedule import ancestral_step, jump

        backbone, levels = request.batch.backbone, self.levels(request)
        noise = self._noise(request, cycle)
        x = pasted(jump(backbone.schedule, x, levels[0], levels[-1], next(noise)), kept, -1, mask)
        for k in range(self.construct, 0, -1):
            t = levels[k]
            here = request.with_(x_t=x, t=t, t_condition=t, origin="sampled", features=False, outputs=True)
            prediction = backbone.denoise(here).prediction
            x = ancestral_step(backbone.schedule, prediction, x, t, levels[k - 1], next(noise), self.eta)
            x = pasted(x, kept, k - 1, mask)
        return x

    def _noise(self, request: Request, cycle: int) -> Iterator[Tensor]:
        """Draws of one cycle, functions of (seed, sample id, place)."""
        first = request.seed + NOISE + (cycle << 32)
        return (request.batch.noise(first + (k << 24)) for k in range(self.construct + 1))


def pasted(x: Tensor, kept: list[Tensor], level: int, mask: Tensor) -> Tensor:
    """x with the kept latent of a level inside the mask; where nothing was kept, x itself."""
    return x.where(mask == 0, kept[level]) if kept else x
