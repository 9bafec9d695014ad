"""What a technique generates while its noise moves from one draw to another (Smooth Diffusion, Guo et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gate.passes import single_pass

if TYPE_CHECKING:
    from gate.request import Batch, Conditioning
    from gate.technique import Technique

POINTS = 11  # 0, 0.1, ... 1
OTHER = 1 << 40  # the second noise's seed, far from the first's and from a screen's


def interpolated(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The great arc from a to b, row by row: sin((1 - share) w) a + sin(share w) b, over sin w, w the rows' angle.

    a, b: (b, ...); rows that (nearly) agree in direction are mixed linearly. share: [0, 1]; 0 is a and 1 is b. Normal
    noise stays normal on the way, as it does not on a straight line.
    """
    rows = (-1,) + (1,) * (a.ndim - 1)
    u, v = a.flatten(1).double(), b.flatten(1).double()
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp_min(1e-30)
    angle = cosine.clamp(-1, 1).acos()
    straight = angle.sin() < 1e-3
    sine = angle.sin().where(~straight, torch.ones_like(angle))
    first = (((1 - share) * angle).sin() / sine).where(~straight, torch.full_like(angle, 1 - share))
    second = ((share * angle).sin() / sine).where(~straight, torch.full_like(angle, share))
    return first.to(a).view(rows) * a + second.to(b).view(rows) * b


@torch.no_grad()
def walk(
    technique: Technique,
    batch: Batch,
    conditioning: Conditioning,
    *,
    steps: int,
    seed: int,
    points: int = POINTS,
) -> Tensor:
    """Images along the path between two noises, (b, points, 3, H, W) in [0, 1] on the CPU.

    Each by `steps` deterministic DDIM steps from the noisiest timestep, through an attached technique, under its own
    conditioning and without guidance. Noises are functions of (seed, sample id).
    """
    backbone = batch.backbone
    top = len(backbone.schedule) - 1
    state = batch.request(top, seed, conditioning).with_(origin="sampled", features=False, outputs=True)
    a, b = batch.noise(seed), batch.noise(seed + OTHER)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return single_pass(technique, state.with_(x_t=x, t=t, t_condition=t), ()).prediction

    frames = []
    for k in range(points):
        x = interpolated(a, b, k / (points - 1))
        frames.append(backbone.decode(backbone.schedule.ddim_sample(x, top, steps, predict)).cpu())
    return torch.stack(frames, dim=1)
