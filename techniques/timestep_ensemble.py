"""Features averaged over neighbouring noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from gate.request import Request, Response
    from gate.technique import CallNext


@dataclass(kw_only=True)
class TimestepEnsemble(Technique):
    """F = mean over o of F(x_{t+o}, t+o), with one x0 and one noise.

    Ours, after Diffusion Hyperfeatures (Luo et al. 2023), which aggregates timesteps with learned weights;
    here they are equal. offsets: added to t and clamped to the schedule; (0,) is vanilla.
    """

    name = "timestep-ensemble"
    summary = "Average features over neighbouring timesteps, same noise."
    source = "ours; after Luo et al. 2023, Diffusion Hyperfeatures (arXiv 2305.14334)"
    families = frozenset({"text", "unconditional"})
    neutral: ClassVar = {"offsets": (0,)}

    offsets: tuple[int, ...] = (-25, 0, 25)

    def __post_init__(self) -> None:
        self.offsets = tuple(self.offsets)
        if not self.offsets or any(not isinstance(o, int) for o in self.offsets):
            raise ValueError(f"offsets must be whole numbers, at least one; got {self.offsets}.")

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=float(len(self.offsets)))

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        from gate.request import mean_response

        if request.origin != "noised":  # such a state exists at its own timestep only
            return call_next(request)
        last = len(request.batch.backbone.schedule) - 1
        levels = [(request.t + offset).clamp(0, last) for offset in self.offsets]
        return mean_response([
            call_next(request.at(t) if o else request) for o, t in zip(self.offsets, levels, strict=True)
        ])  # fmt: skip
