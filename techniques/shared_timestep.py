"""One timestep condition for a whole interval of small noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.technique import Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Request, Response
    from gate.technique import CallNext


@dataclass(kw_only=True)
class SharedTimestep(Technique):
    """E-TSDM (Yang et al. 2023): eps_theta(x_t, f(t)), f(t) = left end of t's interval below the
    threshold.

    The noise level stays at t; only what the denoiser is told changes. E-TSDM retrains with the shared
    condition; here the frozen denoiser is told it (ours), unless it was fitted so: `gate fit lora
    --shared-below 100`. Flow models are told T sigma, which is what is shared there; models that are told sigma
    itself or its logarithm (EDM and kin) share t. threshold: shared below it. intervals: how many there are
    below it; as many as the threshold are vanilla.
    """

    name = "shared-timestep"
    summary = "Tell the denoiser the left end of the timestep's interval, at small noise."
    source = "Yang et al. 2023, E-TSDM (arXiv 2306.11251)"
    families = frozenset({"text", "unconditional"})
    neutral: ClassVar = {"threshold": 100, "intervals": 100}

    threshold: int = 100
    intervals: int = 5

    def __post_init__(self) -> None:
        if self.threshold < 1 or self.intervals < 1 or self.threshold % self.intervals:
            raise ValueError(
                f"intervals must divide threshold, both 1 or more; got {self.intervals} and {self.threshold}."
            )

    def shared(self, t: Tensor) -> Tensor:
        """f(t). t: any shape, what the denoiser would be told."""
        from gate.schedule import shared_timestep

        return shared_timestep(t, self.threshold, self.intervals)

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if self.intervals == self.threshold:  # on whole numbers the identity, and T sigma is none
            return call_next(request)
        schedule, told = request.batch.backbone.schedule, request.t_condition
        if schedule.counts:  # sigma itself and its logarithm have no intervals of timesteps
            told = schedule.told(told)
        return call_next(request.with_(t_condition=self.shared(told)))
