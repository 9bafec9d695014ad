"""The held-out look of a fit: what it is judged by, the same at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gate.machine import halving
from gate.schedule import sample_noise

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.course import Material

HELD_OUT_LEVELS = (0.1, 0.3, 0.5, 0.7)  # of the schedule
HELD_OUT_NOISES = 2


@torch.no_grad()
def held_out_errors(
    loss: Callable[..., Tensor],
    backbone: Backbone,
    material: Material,
    log: Callable[[str], None] = lambda _: None,
    *,
    together: bool = False,
) -> Tensor:
    """(m,) float64: loss of each held-out image under its fullest caption, over four noise levels and two noises,
    the same at every step. Where memory runs out, fewer of these go through at once.

    together: a row's loss is of the other rows too, so that fewer at once would be another number: OutOfMemoryError.
    """
    levels = [
        round(level * len(backbone.schedule)) for level in HELD_OUT_LEVELS for _ in range(HELD_OUT_NOISES)
    ]
    t, shape = torch.tensor(levels), tuple(material.x0.shape[1:])
    size, errors = 1 if together else len(levels), []
    for row in material.held_out:
        identity, text = material.samples[row].id, material.captions[row][-1]
        eps = torch.stack([sample_noise(identity, seed, shape) for seed in range(len(levels))]).to(
            material.x0
        )
        x_t = backbone.schedule.add_noise(material.x0[row].expand_as(eps), eps, t)

        def look(at_once: int, row: int = row, text: str = text, x_t: Tensor = x_t, eps: Tensor = eps) -> Any:
            rows = len(t) if together else at_once
            parts = [slice(i, i + rows) for i in range(0, len(t), rows)]
            found = [loss(x_t[p], eps[p], t[p], [text] * len(t[p]), [row] * len(t[p])) for p in parts]
            return at_once, torch.cat(found)

        size, found = halving(
            look, size, "the held-out look", "use a smaller backbone or --dtype bfloat16", log=log
        )
        errors.append(found.double().mean())
    return torch.stack(errors).cpu()
