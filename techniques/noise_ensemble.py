"""Features averaged over several draws of the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.errors import UnsuitableError
from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from gate.request import Request, Response
    from gate.technique import CallNext


@dataclass(kw_only=True)
class NoiseEnsemble(Technique):
    """F = mean over k of F(a_t x0 + s_t eps_k, t), DIFT's ensemble (Tang et al. 2023, section 4.2).

    members: draws of the noise. The first is the pass's own noise, so one member is vanilla; the others
    derive from its seed. It draws the latent anew, so what moves the latent (guidance) must stand to its
    right.
    """

    name = "noise-ensemble"
    summary = "Average features over several noises."
    source = "Tang et al. 2023, DIFT (arXiv 2306.03881)"
    families = frozenset({"text", "unconditional"})
    replaces_latent = True
    neutral: ClassVar = {"members": 1}

    members: int = 8

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"members must be at least 1, got {self.members}.")

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=float(self.members))

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        from gate.request import mean_response

        if request.origin != "noised" or self.members == 1:
            return call_next(request)
        self._refuse_moved(request)
        others = [request.renoised(derived_seed(request.seed, k)) for k in range(1, self.members)]
        return mean_response([call_next(r) for r in (request, *others)])

    def _refuse_moved(self, request: Request) -> None:
        import torch

        if not torch.equal(request.eps, request.batch.noise(request.seed)):
            raise UnsuitableError(
                f"{self.name} draws the latent anew and would undo what moved it.",
                f"Put {self.name} first, as in {self.name}+guidance-cfg.",
            )


def derived_seed(seed: int, member: int) -> int:
    """The noise seed of a member: far from the small numbers that users choose."""
    return seed + (member << 32)
