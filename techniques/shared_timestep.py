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
    condition; here the frozen denoiser is told it (ours). threshold: shared below it. intervals: how many
    share it.
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
        """f(t). t: any shape, long."""
        width = self.threshold // self.intervals
        left = t - t % width
        return left.where(t < self.threshold, t)

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        return call_next(request.with_(t_condition=self.shared(request.t_condition)))
