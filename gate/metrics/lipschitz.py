"""How fast the predicted noise changes along the noise axis: E-TSDM's diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gate.metric import Metric, implied_eps

if TYPE_CHECKING:
    from torch import Tensor

    from gate.metric import Pass
    from gate.request import Request


class Lipschitz(Metric):
    """K(t) = E ||eps_hat(x_t, t) - eps_hat(x_{t+1}, t+1)||_2 with the same x0 and eps: a step of one timestep.

    At the noisy end of the schedule the step is towards t - 1. eps_hat is what the reconstruction implies at the latent
    that all techniques share, as for `eps`; for vanilla it is the prediction itself.
    """

    name = "lipschitz"
    summary = "Length of what one timestep more changes in the predicted noise"
    source = "Yang et al. 2023, E-TSDM (arXiv 2306.11251), section 3"
    unit = "L2 length in noise units per timestep"
    compares = "pass"
    needs = frozenset({"predictions", "latents", "second-pass"})
    standard = False
    scale_invariant = False
    weakness = "A denoiser that says the same whatever the noise level has none; large values need not hurt features."

    def measure(self, seen: Pass) -> Tensor:
        assert seen.again is not None
        beside = neighbour(seen.request)
        here, there = implied_eps(seen.request, seen.response), implied_eps(beside, seen.again(beside))
        return (here.double() - there.double()).flatten(1).norm(dim=1).float()


def neighbour(request: Request) -> Request:
    """The same x0 and eps one timestep further, or one before the last."""
    last = len(request.batch.backbone.schedule) - 1
    after = (request.t + 1).where(request.t < last, request.t - 1)
    return request.at(after).with_(outputs=True)
