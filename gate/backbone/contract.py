"""The backbone contract: encode, decode, encode_prompts, schedule, layers, denoise, extract."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gate.backbone.capture import Features, capture, per_head, spatial
from gate.backbone.layers import LayerInfo, is_map, resolve_layers
from gate.errors import NonFiniteError
from gate.request import Batch, Conditioning, Request, Response
from gate.sample import Sample
from gate.schedule import NoiseSchedule


class Backbone(abc.ABC):
    """A denoiser with what surrounds it. Nothing in it is modified; activations come from hooks.

    name: what the user asked for. family: "unet", ...; traits: what else techniques may ask for, "text" where prompts
    condition it. image_size: pixels a side. calls: denoiser rows so far, the
    cost that techniques declare is checked against it. source: where the weights came from. tokenizer: of its prompts.
    """

    family: ClassVar[str]
    traits: ClassVar[frozenset[str]] = frozenset({"text"})
    name: str
    image_size: int
    schedule: NoiseSchedule
    denoiser: nn.Module
    device: torch.device
    dtype: torch.dtype
    calls: int
    source: Path
    tokenizer: Any

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> x0, (b, c, h, w): the mean of the VAE's posterior, scaled."""

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
    def predict(self, request: Request) -> Tensor:
        """The denoiser's raw output, (b, c, h, w)."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hash of the weights' files: 16 hexadecimal digits."""

    def denoise(self, request: Request, layers: Sequence[str] = ()) -> Response:
        """One denoiser call with the wanted activations, (b, c, h, w); of a map (b, heads x keys, h, w).

        Raises NonFiniteError naming the layer.
        """
        with capture(self.denoiser, {k: self.layer_paths[k] for k in layers}) as seen:
            prediction = self.predict(request)
            grid = (request.x_t.shape[-2], request.x_t.shape[-1])
            maps = {layer for layer in layers if is_map(self.layer_paths[layer])}
            features = {
                layer: spatial(seen[layer], grid) if layer in maps else self.settled(layer, seen[layer])
                for layer in layers
            }
        self.calls += len(request.x_t)
        for layer, value in {**features, "output": prediction}.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteError(
                    f"Layer {layer} of {self.name} gives NaN or infinity at t = {int(request.t[0])} in {self.dtype}; "
                    "try --dtype float32."
                )
        return Response(prediction, self.schedule.x0_from(prediction, request.x_t, request.t), features)

    def calibrate(self, layers: Sequence[str]) -> None:  # noqa: B027
        """Look at these layers before they are used; a family may find channels that are not worth keeping."""

    def settled(self, layer: str, feature: Tensor) -> Tensor:
        """A feature as it is handed out, (b, c, h, w), by what `calibrate` found."""
        return feature

    def batch(
        self,
        samples: Sequence[Sample],
        x0: Tensor | None = None,
        *,
        everyone: Sequence[Sample] = (),
        class_names: tuple[str, ...] = (),
    ) -> Batch:
        """Samples with their clean latents (encoded here where none are given) and the neutral conditioning."""
        latents = self.encode(pixels(samples)) if x0 is None else x0
        neutral = self.encode_prompts([""] * len(samples))
        return Batch(self, tuple(samples), latents, neutral, everyone or samples, class_names)

    def extract(
        self,
        images: Sequence[Any],
        *,
        layers: Sequence[str] = ("paper",),
        timestep: int = 50,
        technique: str | Any = "",
        seed: int = 0,
        batch_size: int = 8,
    ) -> dict[str, Tensor]:
        """Features {layer: (n, c, h, w)} on the CPU; maps are (n, heads, positions, keys).

        images: Samples, PIL images or (h, w, 3) uint8 arrays. layers: ids, aliases, presets; aliases are keys too.
        """
        from gate.data import as_samples
        from gate.registry import create_technique
        from gate.technique import Technique, run

        samples = as_samples(images, self.image_size)
        chosen = create_technique(technique) if isinstance(technique, str) and technique else technique
        active = chosen or Technique()
        wanted = resolve_layers(layers, self.layer_paths)
        self.calibrate(wanted)
        active.check(self, samples)
        active.fit(self, samples)
        parts: dict[str, list[Tensor]] = {layer: [] for layer in wanted}
        with torch.no_grad(), active.attach(self):
            for i in range(0, len(samples), batch_size):
                batch = self.batch(samples[i : i + batch_size].samples, everyone=samples)
                request = batch.request(timestep, seed, active.condition(batch.neutral, batch))
                for layer, value in run(active, request, wanted).features.items():
                    parts[layer].append(value.cpu())
        made = Features({layer: torch.cat(values) for layer, values in parts.items()})
        for layer in wanted:
            if is_map(self.layer_paths[layer]):
                attention: Any = self.denoiser.get_submodule(self.layer_paths[layer].partition(":")[0])
                made[layer] = per_head(made[layer], attention.heads)
        return made


def pixels(samples: Sequence[Sample]) -> Tensor:
    """(b, 3, h, w) float32 in [0, 1]."""
    stacked: NDArray[np.uint8] = np.stack([s.image for s in samples])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
