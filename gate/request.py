"""What passes between a technique and the denoiser: conditioning, batch, request, response. All immutable."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from gate.sample import Sample
from gate.schedule import sample_noise

if TYPE_CHECKING:
    from gate.backbone import Backbone

Origin = Literal["noised", "clean", "sampled"]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What steers the denoiser, one row per sample.

    prompt_embeds: (b, n, d). pooled: (b, d') or None. mask: (b, n) or None. time_ids: (b, m) or None.
    image_embeds: (b, k, d'') or None. labels: (b,) long or None, the model's own classes. prompts: the b texts behind
    it, for records. told: what a recorded denoiser is told, a row each (gate/backbones/recorded); prompt_embeds then
    has no tokens.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    time_ids: Tensor | None = None
    image_embeds: Tensor | None = None
    labels: Tensor | None = None
    prompts: tuple[str, ...] = ()
    told: tuple[Any, ...] = ()

    def replace(self, **changes: Any) -> Conditioning:
        return dataclasses.replace(self, **changes)

    def with_text(self, text: Conditioning) -> Conditioning:
        """The prompts of `text`, everything else as it is here."""
        return self.replace(
            prompt_embeds=text.prompt_embeds,
            pooled=text.pooled,
            mask=text.mask,
            prompts=text.prompts,
            told=text.told,
        )

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def rows(self, index: Sequence[int]) -> Conditioning:
        """The rows of `index`, in that order; repeats are allowed."""
        i = torch.as_tensor(list(index), dtype=torch.long)

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[i.to(value.device)]
            return tuple(value[j] for j in index) if value else value

        return Conditioning(**{name: pick(value) for name, value in self._fields().items()})

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of all parts, one after the other; what only some of them have is an error."""
        joined: dict[str, Any] = {}
        for name in parts[0]._fields():
            values = [getattr(part, name) for part in parts]
            if any(isinstance(value, Tensor) for value in values):
                joined[name] = torch.cat(values)
            else:
                joined[name] = (
                    None if values[0] is None else tuple(item for value in values for item in value)
                )
        return Conditioning(**joined)

    def _fields(self) -> dict[str, Any]:
        """Every field by name: rows and joins must not forget one."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples on their way through the denoiser.

    x0: (b, c, h, w) clean latents. neutral: the conditioning of the neutral prompt.
    samples: all b of them; everyone: every sample of the run (a negative control may borrow from another sample);
    class_names: the names of the run's image classes, where it has any.
    """

    backbone: Backbone
    samples: tuple[Sample, ...]
    x0: Tensor
    neutral: Conditioning
    everyone: Sequence[Sample] = ()
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def noise(self, seed: int) -> Tensor:
        """(b, c, h, w) standard normal, each row from its own generator of (seed, sample id)."""
        shape = tuple(self.x0.shape[1:])
        return torch.stack([sample_noise(s.id, seed, shape) for s in self.samples]).to(self.x0)

    def request(self, t: int, seed: int, conditioning: Conditioning | None = None) -> Request:
        """The noised latents at timestep t."""
        steps = torch.full((len(self),), self.backbone.schedule.check(t), dtype=torch.long)
        eps = self.noise(seed)
        x_t = self.backbone.schedule.add_noise(self.x0, eps, steps)
        return Request(x_t, steps, steps, eps, conditioning or self.neutral, self, seed)

    def clean_request(self, conditioning: Conditioning | None = None) -> Request:
        """The reference: clean latents at t = 0, no noise."""
        steps = torch.zeros(len(self), dtype=torch.long)
        return Request(
            self.backbone.schedule.clean(self.x0),
            steps,
            steps,
            torch.zeros_like(self.x0),
            conditioning or self.neutral,
            self,
            0,
            origin="clean",
        )


@dataclass(frozen=True, eq=False)
class Request:
    """One call of the denoiser.

    x_t: (b, c, h, w). t: (b,) long, the true noise level of x_t. t_condition: (b,), what the denoiser is told.
    eps: (b, c, h, w), the noise in x_t. seed: the noise seed. residuals: extra inputs of the denoiser (ControlNet).
    features: whether this call's activations are wanted; intermediate calls switch it off. outputs: whether its
    prediction is; where it is not, a call for activations stops after the last of them (`CutResponse`).
    origin: "noised" = x0 plus eps; "clean" = the reference, t = 0 and no noise; "sampled" = a state of a generating
    trajectory. Only a noised request can be drawn again: `at` and `renoised` leave the other two as they are.
    """

    x_t: Tensor
    t: Tensor
    t_condition: Tensor
    eps: Tensor
    conditioning: Conditioning
    batch: Batch
    seed: int
    origin: Origin = "noised"
    features: bool = True
    outputs: bool = True
    residuals: dict[str, Any] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Request:
        return dataclasses.replace(self, **changes)

    def at(self, t: int | Tensor) -> Request:
        """The same x0 and eps at another noise level."""
        if self.origin != "noised":
            return self
        steps = torch.as_tensor(t, dtype=torch.long).expand(len(self.t)).clone()
        x_t = self.batch.backbone.schedule.add_noise(self.batch.x0, self.eps, steps)
        return self.with_(x_t=x_t, t=steps, t_condition=steps)

    def renoised(self, seed: int) -> Request:
        """The same noise level with fresh noise of another seed."""
        if self.origin != "noised":
            return self
        eps = self.batch.noise(seed)
        return self.with_(
            x_t=self.batch.backbone.schedule.add_noise(self.batch.x0, eps, self.t), eps=eps, seed=seed
        )

    def moved(self, x_t: Tensor, t: Tensor) -> Request:
        """The same request at another state x_t of noise level t; eps becomes the noise that x_t implies."""
        if self.origin != "noised":
            return self.with_(x_t=x_t, t=t, t_condition=t)
        eps = self.batch.backbone.schedule.implied_eps(x_t, self.batch.x0, t)
        return self.with_(x_t=x_t, t=t, t_condition=t, eps=eps)


@dataclass(frozen=True, eq=False)
class Response:
    """What one call gives: the raw prediction and x0_hat, (b, c, h, w), and features {layer: (b, c, h, w)}."""

    prediction: Tensor
    x0: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Response:
        return dataclasses.replace(self, **changes)

    def copy(self) -> Response:
        """The same values in memory of its own."""
        features = {layer: value.clone() for layer, value in self.features.items()}
        return Response(self.prediction.clone(), self.x0.clone(), features)


class WholeNeeded(BaseException):
    """Somebody asks a `CutResponse` for its prediction: the pass is made again, whole (`gate.passes.single_pass`).

    No Exception: a technique that catches those would go on without an answer.
    """


class CutResponse(Response):
    """Of a forward that stopped after its last wanted layer: it has features, and no prediction.

    Raises WholeNeeded where prediction or x0 are read. It could not make them later: a technique may have changed the
    denoiser for this one call.
    """

    def __init__(self, features: dict[str, Tensor]) -> None:
        object.__setattr__(self, "features", features)

    @property
    def prediction(self) -> Tensor:
        raise WholeNeeded

    @property
    def x0(self) -> Tensor:
        raise WholeNeeded

    def with_(self, **changes: Any) -> Response:
        if set(changes) != {"features"}:
            raise WholeNeeded
        return CutResponse(changes["features"])

    def copy(self) -> Response:
        return CutResponse({layer: value.clone() for layer, value in self.features.items()})


def mean_response(responses: Sequence[Response]) -> Response:
    """Mean of predictions, x0_hat and features; one response is returned as it is."""
    if len(responses) == 1:
        return responses[0]
    n = len(responses)
    layers = responses[0].features
    features = {k: sum((r.features[k] for r in responses[1:]), layers[k]) / n for k in layers}
    if all(isinstance(r, CutResponse) for r in responses):
        return CutResponse(features)
    prediction = torch.stack([r.prediction for r in responses]).mean(0)
    return Response(prediction, torch.stack([r.x0 for r in responses]).mean(0), features)
