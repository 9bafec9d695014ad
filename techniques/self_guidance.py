"""Guidance towards the group of the image, found in the denoiser's own features, without labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gate.technique import Cost, Technique, descend

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Request, Response
    from gate.sample import SampleSet
    from gate.technique import CallNext

AT_ONCE = 8  # images that are looked at together while prototypes are fitted
PER_PROTOTYPE = 4  # images at least
MIN_SIDE = 8  # positions, as Stable Diffusion's mid block has


@dataclass(kw_only=True)
class SelfGuidance(Technique):
    """eps' = eps - scale sqrt(1 - abar) grad_{x_t} log softmax(C z(x_t) / temperature)[k(x0)] (Hu et al. 2023,
    with a gradient in place of a trained head).

    z: the deepest feature, averaged over positions, standardised, of unit length; C: prototypes, fitted by
    Sinkhorn-Knopp on the clean screening images, without labels; k(x0): the nearest prototype of the clean image.
    Ours is that nothing is trained: the paper trains a projection head, prototypes and a denoiser that is told k. As
    with other guiders, a prediction cannot change the activations of its own call: the guided step starts at t + lead
    and goes down to t by steps DDIM steps. scale: 0 is vanilla. prototypes: how many, one for every 4 images at most.
    layer: an id; "" is the mid block, or the first level above it with 8x8 positions, of a transformer the middle
    block.
    """

    name = "self-guidance"
    summary = "Reach t by a step that is guided to the image's own group of features."
    source = "ours; after Hu et al. 2023 (arXiv 2312.08825)"
    families = frozenset({"text", "unconditional"})
    listed = False
    unlisted = "it takes 3 denoiser calls, one of them with a gradient, where vanilla takes one; name it to screen it"
    neutral: ClassVar = {"scale": 0.0}

    scale: float = 3.0
    lead: int = 50
    steps: int = 1
    prototypes: int = 8
    temperature: float = 0.1
    layer: str = ""
    _place: str = field(default="", init=False, repr=False)
    _fitted: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.lead < 1 or self.steps < 1 or self.prototypes < 2 or self.temperature <= 0:
            raise ValueError("lead and steps must be at least 1, prototypes at least 2, temperature above 0.")

    @property
    def cost(self) -> Cost:
        """The clean image's group, one call with a gradient for each step, and the call at t."""
        return Cost(per_pass=self.steps + 2.0 if self.scale else 1.0)

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        import torch

        from gate.ridge import moments
        from gate.sinkhorn import fit_prototypes, unit

        if not self.scale:
            return
        with torch.no_grad():
            self._place = self.layer or deep_layer(backbone, backbone.batch(samples[:1].samples))
            pooled = [
                self._pooled(backbone.batch(samples[i : i + AT_ONCE].samples)).cpu()
                for i in range(0, len(samples), AT_ONCE)
            ]
        rows = torch.cat(pooled).double().numpy()
        mean, std = moments(rows)
        k = max(2, min(self.prototypes, len(rows) // PER_PROTOTYPE))
        prototypes = fit_prototypes(unit((rows - mean) / std), min(k, len(rows)))
        found = {"prototypes": prototypes, "mean": mean, "std": std}
        self._fitted = {key: torch.from_numpy(value).float() for key, value in found.items()}

    def state(self) -> dict[str, Tensor]:
        import torch

        place = torch.tensor(list(self._place.encode()), dtype=torch.uint8)
        return {**self._fitted, "layer": place} if self._fitted else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._fitted = {key: value for key, value in state.items() if key != "layer"}
        if "layer" in state:
            self._place = bytes(state["layer"].tolist()).decode()

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if not self.scale or request.origin == "clean":
            return call_next(request)
        group = self._scores(self._pooled(request.batch)).argmax(dim=1)
        if request.origin == "sampled":
            plain = call_next(request)
            guided = self._guided(request, group)
            x0 = request.batch.backbone.schedule.x0_from(guided, request.x_t, request.t)
            return plain.with_(prediction=guided, x0=x0)
        return call_next(descend(request, self.lead, self.steps, lambda r: self._guided(r, group)))

    def _pooled(self, batch: Batch) -> Tensor:
        """(b, c): the deepest feature of the clean images, averaged over positions."""
        clean = batch.clean_request()
        return batch.backbone.denoise(clean, (self._place,)).features[self._place].float().mean(dim=(2, 3))

    def _scores(self, pooled: Tensor) -> Tensor:
        """(b, k): cosines to the prototypes."""
        from torch.nn.functional import normalize

        prototypes, mean, std = (self._fitted[key].to(pooled) for key in ("prototypes", "mean", "std"))
        return normalize((pooled - mean) / std, dim=1) @ prototypes.T

    def _guided(self, request: Request, group: Tensor) -> Tensor:
        """The guided prediction, (b, c, h, w), by one call and its gradient."""
        import torch

        backbone = request.batch.backbone
        with torch.enable_grad():
            x_t = request.x_t.detach().requires_grad_()
            prediction, found = backbone.activate(request.with_(x_t=x_t), (self._place,))
            scores = self._scores(found[self._place].float().mean(dim=(2, 3)))
            likely = (scores / self.temperature).log_softmax(dim=1).gather(1, group[:, None])
            [gradient] = torch.autograd.grad(likely.sum(), x_t)
        _, s = backbone.schedule.coefficients(request.t, request.x_t)
        change = -self.scale * s * gradient
        return backbone.schedule.shifted(prediction.detach(), change, request.t)


def deep_layer(backbone: Backbone, batch: Batch) -> str:
    """The mid block, or the first level above it with 8x8 positions or more; of a transformer, the middle block."""
    known = backbone.layer_paths
    blocks = [layer for layer in known if re.fullmatch(r"(block|single)\d+", layer)]
    if blocks:
        return blocks[len(blocks) // 2]
    levels = [layer for layer in known if re.fullmatch(r"mid|up\d+", layer)]
    found = backbone.denoise(batch.clean_request(), levels).features
    return next((layer for layer in levels if found[layer].shape[-1] >= MIN_SIDE), levels[-1])
