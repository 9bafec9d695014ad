"""Diffusion Classifier (Li et al. 2023): under which of several conditions the denoiser errs least, in stages.

argmin_c E_{t, eps} || eps - eps_theta(x_t, t, c) ||^2 (Eq. 5), uniform over t, the same noise for every c,
candidates dropped between stages (Alg. 1). This module imports no torch, so that listing is instant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Request
    from gate.schedule import NoiseSchedule

Stages = tuple[tuple[int, int], ...]
Loss = Literal["l2", "l1", "huber"]
MOST_TELLING = 0.38  # of the schedule: on tiny, where the errors of class prompts spread most
NOISE = 1 << 48  # far from the noise seeds of a screen, which must not choose the conditions


def checked_stages(stages: Sequence[Sequence[int]]) -> Stages:
    """The stages as (copies, keep) pairs. Raises ValueError where they cannot be gone through."""
    pairs = tuple((int(n), int(keep)) for n, keep in stages)
    counts = [n for n, _ in pairs]
    if not counts or min(min(stage) for stage in pairs) < 1 or pairs[-1][1] != 1:
        raise ValueError("stages are (copies, keep) pairs of at least 1, and the last keeps 1.")
    if any(b % a or b == a for a, b in itertools.pairwise(counts)):
        raise ValueError(f"each stage's copies must be a multiple of the one before; got {counts}.")
    return pairs


def checked_loss(loss: str) -> None:
    """Raises ValueError for a loss that is none of them."""
    if loss not in get_args(Loss):
        raise ValueError(f"loss must be l2, l1 or huber, got {loss!r}.")


def copies(n: int, stages: Stages) -> list[int]:
    """Which of the last stage's N copies a stage of n uses: every N/n-th, with those of earlier stages."""
    most, first = stages[-1][0], stages[0][0]
    step = most // n
    return list(range((most // first) // 2 % step, most, step))


def copy_timestep(copy: int, copies: int, length: int) -> int:
    """Of one of N copies, in a schedule of `length`: start T / 2N, step T / N."""
    return length * (2 * copy + 1) // (2 * copies)


def search_calls(candidates: int, stages: Stages) -> int:
    """Denoiser calls per image: each surviving candidate is brought from one stage's copies to the next's."""
    calls, alive, before = 0, candidates, 0
    for n, keep in stages:
        if alive <= 1:
            break
        calls += alive * (n - before)
        alive, before = min(alive, keep), n
    return calls


def search(rows: int, candidates: int, stages: Stages, error: Callable[[Tensor, int], Tensor]) -> list[int]:
    """Index of the best candidate of each row; a tie goes to the first.

    error: (candidate of each row (b,) long, copy) -> (b,) float64, asked once for each pair. Every copy has its own
    timestep and noise; later stages fill in between, so totals only grow.
    """
    import torch

    every = torch.arange(rows)
    alive = torch.arange(candidates).expand(rows, -1)  # (b, k), ascending in each row
    total = torch.zeros(rows, candidates, dtype=torch.float64)
    done: list[int] = []
    for n, keep in stages:
        if alive.shape[1] == 1:
            break
        fresh = [i for i in copies(n, stages) if i not in done]
        for rank in range(alive.shape[1]):
            for copy in fresh:
                total[every, alive[:, rank]] += error(alive[:, rank], copy)
        done += fresh
        order = total.gather(1, alive).argsort(dim=1, stable=True)[:, :keep]
        alive = alive.gather(1, order).sort(dim=1).values
    return alive[:, 0].tolist()


def race_order(copies: int) -> list[int]:
    """Copies by how near they lie to MOST_TELLING of the schedule: where conditions differ most comes first."""
    return sorted(range(copies), key=lambda copy: abs((copy + 0.5) / copies - MOST_TELLING))


def race(
    rows: int,
    candidates: int,
    copies: int,
    strictness: float,
    error: Callable[[list[int], list[int], int], Tensor],
) -> list[int]:
    """As `search`, but a row drops a candidate as soon as it cannot be expected to catch up (ours).

    error: (rows, their candidates, both (m,), copy) -> (m,) float64. After each copy but the first, a candidate goes
    that lies more than strictness * s * sqrt(copies left) behind the best: s is the standard deviation, over the copies
    seen and all that are left, of the difference to the best. Each row decides by its own errors alone; strictness inf
    is the exhaustive argmin. Ties go to the first.
    """
    import torch

    alive = [list(range(candidates)) for _ in range(rows)]
    seen = torch.zeros(rows, candidates, copies, dtype=torch.float64)
    order = race_order(copies)
    for made, copy in enumerate(order, start=1):
        pairs = [(row, c) for row in range(rows) if len(alive[row]) > 1 for c in alive[row]]
        if not pairs:
            break
        which, whom = [row for row, _ in pairs], [c for _, c in pairs]
        seen[which, whom, copy] = error(which, whom, copy)
        for row in dict.fromkeys(which):
            alive[row] = _still_in(seen[row][:, order[:made]], alive[row], copies - made, strictness)
    return [kept[int(seen[row, kept].sum(dim=1).argmin())] for row, kept in enumerate(alive)]


def _still_in(seen: Tensor, alive: list[int], left: int, strictness: float) -> list[int]:
    """Those of a row's candidates that can still win. seen: (candidates, m) errors of the copies so far."""
    made = seen.shape[1]
    if made < 2 or not left or strictness == math.inf:
        return alive
    mine = seen[alive]
    behind = mine - mine[int(mine.sum(dim=1).argmin())]
    spread = (behind - behind.mean(dim=1, keepdim=True)).square().sum() / ((len(alive) - 1) * (made - 1))
    margin = strictness * float(spread.sqrt()) * left**0.5
    return [c for c, total in zip(alive, behind.sum(dim=1).tolist(), strict=True) if total <= margin]


def condition_error(schedule: NoiseSchedule, prediction: Tensor, request: Request, loss: Loss) -> Tensor:
    """(b,) float64 >= 0: mean loss over the latent of a call's prediction at `request`.

    Of eps, whatever the prediction type; of v = eps - x0 for flow models, which is what they are trained to say.
    """
    from torch.nn import functional as F

    if schedule.prediction_type == "flow_prediction":
        guess, truth = prediction, request.eps - request.batch.x0
    else:
        guess, truth = schedule.eps_from(prediction, request.x_t, request.t), request.eps
    measures: dict[str, Any] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
    each: Tensor = measures[loss](guess.double(), truth.double(), reduction="none")
    return each.mean(dim=(1, 2, 3)).cpu()


def implied_prediction(schedule: NoiseSchedule, x0_hat: Tensor, request: Request) -> Tensor:
    """The prediction at `request` that a reconstruction stands for, (b, c, h, w).

    What a technique that moved the latent would have had to say there; for vanilla the prediction itself.
    """
    eps_hat = schedule.implied_eps(request.x_t, x0_hat, request.t)
    return schedule.target(x0_hat, eps_hat, request.t)
