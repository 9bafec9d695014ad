"""Features averaged over Diffusion-GAN's mixture of noise levels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Request, Response
    from gate.technique import CallNext

FAR = 1 << 40  # from the noise seeds of users and of ensembles


@dataclass(kw_only=True)
class MixtureT(Technique):
    """F = 1/2 F(x_0, 0) + 1/2 mean over k of F(x_{t_k}, t_k), t_k ~ pi(t) ~ t on 1 ... T, T the pass's timestep.

    Ours: Diffusion-GAN (Wang et al. 2022) shows its discriminator half clean samples, half at levels drawn
    with the priority pi, which favours the strongest noise; here one feature is averaged over that mixture. members:
    draws of pi, stratified, each with its own noise, a function of (seed, sample id); 0 is vanilla. clean: the weight
    of the clean half. The T that adapts is the probe's (`two-sample`): extraction is asked for one timestep, and that
    is T.
    """

    name = "mixture-t"
    summary = "Average features over the clean latent and timesteps drawn up to this one."
    source = "ours; after Wang et al. 2022, Diffusion-GAN (arXiv 2206.02262)"
    families = frozenset({"text", "unconditional"})
    leak = "half of what is averaged comes from the input's own latent without noise"
    replaces_latent = True
    listed = False
    unlisted = "it takes 4 denoiser calls where vanilla takes one; name it to screen it"
    neutral: ClassVar = {"members": 0}

    members: int = 3
    clean: float = 0.5

    def __post_init__(self) -> None:
        if self.members < 0 or not 0 <= self.clean < 1:
            raise ValueError(
                f"members must be 0 or more and clean in [0, 1), got {self.members} and {self.clean}."
            )

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=float(max(1, self.members + (self.clean > 0 and self.members > 0))))

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if self.members == 0 or request.origin != "noised":
            return call_next(request)
        drawn = [
            call_next(request.renoised(request.seed + FAR * (k + 1)).at(t))
            for k, t in enumerate(self.levels(request))
        ]
        weights = [(1 - self.clean) / self.members] * self.members
        if self.clean:
            clean = request.batch.clean_request(request.conditioning)
            drawn.append(call_next(clean.with_(features=request.features, residuals=request.residuals)))
            weights.append(self.clean)
        return weighted(drawn, weights)

    def levels(self, request: Request) -> list[Tensor]:
        """t_k of every sample, (b,) each: the quantiles of pi at (k + u) / members, u of (seed, sample id)."""
        import numpy as np
        import torch

        from gate.mixture import ramp

        u = np.array([_uniform(request.seed, sample.id) for sample in request.batch.samples])
        top = request.t.numpy()
        found = [ramp((k + u) / self.members, np.maximum(top, 1)) for k in range(self.members)]
        return [torch.from_numpy(np.minimum(t, top)) for t in found]


def weighted(responses: list[Response], weights: list[float]) -> Response:
    """Weighted mean of predictions, x0_hat and features; the weights sum to 1."""
    from gate.request import CutResponse, Response

    pairs = list(zip(responses, weights, strict=True))
    features = {layer: sum(w * r.features[layer] for r, w in pairs) for layer in responses[0].features}
    if all(isinstance(r, CutResponse) for r in responses):
        return CutResponse(features)  # type: ignore[arg-type]
    prediction, x0 = (sum(w * getattr(r, part) for r, w in pairs) for part in ("prediction", "x0"))
    return Response(prediction, x0, features)  # type: ignore[arg-type]


def _uniform(seed: int, identity: str) -> float:
    """In (0, 1), of (seed, sample id) alone."""
    digest = hashlib.blake2b(f"mixture-t/{seed}/{identity}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64
