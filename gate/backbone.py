"""The backbone contract: encode, decode, encode_prompts, schedule, layers, denoise."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gate.errors import NonFiniteError
from gate.request import Batch, Conditioning, CutResponse, Request, Response
from gate.sample import Sample
from gate.schedule import NoiseSchedule

Call = Callable[[Request, Sequence[str]], Response]
Recall = Callable[[Request, Sequence[str], Call], Response]


@dataclass(frozen=True)
class LayerInfo:
    """One layer: id, place, channels, stride against the latent's side, the block that holds it, and its cost.

    channels: heads, where the layer is a map (b, heads, positions, keys). cost: share of the forward's FLOPs that are
    spent when this activation is there, 0 to 1: what a forward that stops here would take.
    """

    id: str
    path: str
    channels: int
    stride: int
    block: str
    cost: float = 1.0

    @property
    def is_map(self) -> bool:
        """Whether it is softmax weights per head instead of a feature map."""
        return is_map(self.path)


def is_map(path: str) -> bool:
    """Whether a place gives softmax weights, (b, heads, positions, keys)."""
    return path.endswith("map")


class Backbone(abc.ABC):
    """A denoiser with what surrounds it. Nothing in it is modified; activations come from hooks.

    name: what the user asked for. family: "unet", ...; traits: what else techniques may ask for, "text" where prompts
    condition it. image_size: pixels a side. source: where the weights came from. tokenizer: of its prompts. recall:
    asked before a call is made, for answers that are there already (`gate.calls.Memo`).
    """

    family: ClassVar[str]
    traits: ClassVar[frozenset[str]] = frozenset({"text"})
    name: str
    image_size: int
    schedule: NoiseSchedule
    denoiser: nn.Module
    device: torch.device
    dtype: torch.dtype
    source: Path
    tokenizer: Any
    recall: Recall | None = None

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> x0, (b, c, h, w) float32 whatever the dtype: the VAE posterior's mean, scaled.

        Gradients flow to images that ask for them.
        """

    @abc.abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """x0, (b, c, h, w) -> images, (b, 3, H, W) float32 in [0, 1]."""

    @abc.abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (b, n, d) by the text encoder as it is now; nothing is kept, gradients flow."""

    @abc.abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """One row per prompt; the same text always gives the same bits."""

    @property
    @abc.abstractmethod
    def components(self) -> dict[str, nn.Module]:
        """The parts that adapters change, under diffusers' names: "unet", "text_encoder"."""

    @abc.abstractmethod
    def prompts_anew(self, tokenizer: Any = None, text_encoder: Any = None) -> AbstractContextManager[None]:
        """For a while, prompts are encoded afresh: their encoder is not the usual one, or other weights are in it.

        tokenizer, text_encoder: what stands in for the backbone's own.
        """

    @property
    @abc.abstractmethod
    def layer_paths(self) -> dict[str, str]:
        """Layer id -> module path."""

    @abc.abstractmethod
    def layers(self) -> list[LayerInfo]:
        """Every layer that can be extracted."""

    @abc.abstractmethod
    def activate(self, request: Request, layers: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """The denoiser's raw output, (b, c, h, w), and the wanted activations of the same forward.

        {layer: (b, c, h, w)}; of a map (b, heads x keys, h, w).
        """

    def reach(self, request: Request, layers: Sequence[str]) -> dict[str, Tensor]:
        """The activations of `activate`, bit for bit; a family may stop its forward once they are there."""
        return self.activate(request, layers)[1]

    def unfolded(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features as they are handed out: maps (b, heads, positions, keys), where there are some."""
        return dict(features)

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of the weights' files: 16 hexadecimal digits."""

    def denoise(self, request: Request, layers: Sequence[str] = ()) -> Response:
        """One denoiser call with the wanted activations. Raises NonFiniteError naming the layer.

        It stops after the last of them where the request wants no outputs (`CutResponse`).
        """
        return self.recall(request, layers, self._call) if self.recall else self._call(request, layers)

    def _call(self, request: Request, layers: Sequence[str]) -> Response:
        if layers and not request.outputs:
            features = self.reach(request, layers)
            self._check(features, request)
            return CutResponse(features)
        prediction, features = self.activate(request, layers)
        self._check({**features, "output": prediction}, request)
        return Response(prediction, self.schedule.x0_from(prediction, request.x_t, request.t), features)

    def _check(self, found: Mapping[str, Tensor], request: Request) -> None:
        for layer, value in found.items():
            if not is_finite(value):
                raise NonFiniteError(
                    f"Layer {layer} of {self.name} gives NaN or infinity at t = {int(request.t[0])} in {self.dtype}; "
                    "try --dtype float32."
                )

    def calibrate(self, layers: Sequence[str]) -> None:  # noqa: B027
        """Look at these layers before they are used; a family may find channels that are not worth keeping."""

    def labelled(self, neutral: Conditioning, labels: Sequence[int | None]) -> Conditioning:
        """The neutral conditioning with the samples' classes, where a model needs a class and has none for "any"."""
        return neutral

    def batch(
        self,
        samples: Sequence[Sample],
        x0: Tensor | None = None,
        *,
        everyone: Sequence[Sample] = (),
        class_names: tuple[str, ...] = (),
        labels: Sequence[int | None] | None = None,
    ) -> Batch:
        """Samples with their clean latents (encoded here where none are given) and the neutral conditioning.

        labels: of the samples, for a model that cannot do without, where a technique must not see them.
        """
        latents = self.encode(pixels(samples)) if x0 is None else x0
        known = [sample.label for sample in samples] if labels is None else labels
        neutral = self.labelled(self.encode_prompts([""] * len(samples)), known)
        return Batch(self, tuple(samples), latents, neutral, everyone or samples, class_names)


def is_finite(value: Tensor) -> bool:
    """Whether there is no NaN and no infinity: a sum shows either, in a tenth of the time."""
    return bool(value.sum(dtype=torch.float32).isfinite()) or bool(value.isfinite().all())


def pixels(samples: Sequence[Sample]) -> Tensor:
    """(b, 3, h, w) float32 in [0, 1]."""
    stacked: NDArray[np.uint8] = np.stack([s.image for s in samples])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
