"""Features averaged over the latent and its mirror image. No torch at the top: listing imports this file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate import Cost, Technique
from gate.errors import UnsuitableError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.request import Request, Response
    from gate.sample import Sample
    from gate.technique import CallNext


@dataclass(kw_only=True)
class LatentFlip(Technique):
    """F = (1 - w) F(x_t) + w flip(F(flip(x_t))), flip = left to right, in the latent.

    What the denoiser imagines is tied to the noise and to learned left-right habits; what both readings
    agree on is tied to the image. weight: share w of the mirrored reading, in [0, 1]; 0 is vanilla.
    """

    name = "latent-flip"
    summary = "Average features over the latent and its mirror image."
    source = "test-time augmentation by mirroring; this example"
    neutral: ClassVar = {"weight": 0.0}

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {self.weight}.")

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=2.0 if self.weight else 1.0)

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if self.weight == 0:
            return call_next(request)
        if request.residuals:
            raise UnsuitableError(
                f"{self.name} cannot mirror the denoiser's extra inputs.",
                f"Put {self.name} first, so that they are made from the mirrored image.",
            )
        straight, back = call_next(request), flipped_response(call_next(flipped_request(request)))
        return straight.with_(
            prediction=self._mix(straight.prediction, back.prediction),
            x0=self._mix(straight.x0, back.x0),
            features={layer: self._mix(f, back.features[layer]) for layer, f in straight.features.items()},
        )

    def _mix(self, straight: Tensor, back: Tensor) -> Tensor:
        return (1 - self.weight) * straight + self.weight * back


def flipped_request(request: Request) -> Request:
    """The mirrored call: latent, noise and the batch behind them, so that `at` of inner techniques agrees."""
    batch = dataclasses.replace(
        request.batch,
        x0=request.batch.x0.flip(-1),
        samples=tuple(flipped_sample(s) for s in request.batch.samples),
    )
    return request.with_(x_t=request.x_t.flip(-1), eps=request.eps.flip(-1), batch=batch)


def flipped_sample(sample: Sample) -> Sample:
    """The mirrored sample under its own id: what is drawn from (seed, id) stays the same."""
    return dataclasses.replace(
        sample,
        image=sample.image[:, ::-1],
        mask=None if sample.mask is None else sample.mask[:, ::-1],
        keypoints=None,
    )


def flipped_response(response: Response) -> Response:
    """The answer, mirrored back. Every map is (b, c, h, w)."""
    return response.with_(
        prediction=response.prediction.flip(-1),
        x0=response.x0.flip(-1),
        features={layer: f.flip(-1) for layer, f in response.features.items()},
    )
