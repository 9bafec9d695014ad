"""The recorded family: whatever pipeline of diffusers conditions on a prompt or a class, called as it calls itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gate.backbone import LayerInfo
from gate.backbones.activations import capture
from gate.backbones.hush import hushed
from gate.backbones.index import part_of
from gate.backbones.layers import layer_paths
from gate.backbones.pipeline import PipelineBackbone
from gate.backbones.recorded.call import leaves, replaced
from gate.backbones.recorded.geometry import Geometry, measure, record
from gate.backbones.recorded.levels import schedule_of
from gate.backbones.recorded.pipeline import own_pipeline, pipeline_class, refuse_conditions, words_of
from gate.backbones.sketch import Sketch
from gate.errors import ConfigurationError, UnsuitableError, UsageError
from gate.request import Conditioning, Request
from gate.schedule import NoiseSchedule

PROBE = 256  # pixels a side of the image that tells how much a VAE shrinks
HEADS = ("unet", "transformer")


class Recorded(PipelineBackbone):
    """A pipeline that no family serves. Nothing of it is in a table: see `geometry` for what is read off it.

    Each row of a batch is a call of its own, as prompts are told by calls of one row: a row's bits do not depend on
    its neighbours. What the denoiser is told of a prompt lies in `Conditioning.told`; `prompt_embeds` has no tokens.
    """

    family = "recorded"
    widened = True
    denoisers = frozenset()
    geometry: Geometry

    @classmethod
    def serves(cls, index: Mapping[str, Any]) -> bool:
        import diffusers

        denoiser = part_of(index, *HEADS)[1]
        known = bool(denoiser) and inspect.isclass(getattr(diffusers, str(denoiser), None))
        return known and pipeline_class(index) is not None

    def __init__(
        self, name: str, source: Path, index: Mapping[str, Any], parts: Mapping[str, Any], **options: Any
    ) -> None:
        cls = pipeline_class(index)
        assert cls is not None
        refuse_conditions(name, cls)
        several = [part for part in index if part.startswith(HEADS) and part_of(index, part)[1]]
        if len(several) != 1:
            raise ConfigurationError(
                f"{name} cannot be recorded: it has {len(several)} denoisers ({', '.join(several)})."
            )
        self.pipeline = own_pipeline(name, index, parts)
        known = words_of(cls)
        takes = "text" if "prompt" in known else "classes" if "class_labels" in known else "unconditional"
        self.traits = frozenset({takes})  # type: ignore[misc]
        super().__init__(name, source, index, parts, **options)

    # what the rehearsal says

    def _chosen_size(self, asked: int | None) -> int:
        neutral = self._said("")
        with self._awake(*self.encoders):
            self.geometry = measure(self.pipeline, self.denoiser, text=neutral, size=asked, dtype=self.dtype)
        made = self.geometry.shape[-1] * self.factor
        if self.geometry.shape[-1] != self.geometry.shape[-2]:
            raise ConfigurationError(f"{self.name} cannot be recorded: its images are not square.")
        if asked is not None and made != asked:
            raise UsageError(
                f"{type(self.pipeline).__name__} makes images of {made} px where {asked} px are asked; leave the image "
                f"size out, or choose {made}."
            )
        self._size = asked
        return made

    def _noise_levels(self, config: Mapping[str, Any]) -> NoiseSchedule:
        scheduler = self.pipeline.scheduler
        timing = {k: v for k, v in self.geometry.timing.items() if v is not None}
        fresh = type(scheduler).from_config(scheduler.config)
        fresh.set_timesteps(**{**timing, "device": "cpu"})
        return schedule_of(
            fresh, timing, {**scheduler.config, "_class_name": type(scheduler).__name__}, self.name
        )

    @functools.cached_property
    def factor(self) -> int:
        """Pixels a side of one latent position, by encoding an image."""
        if self.vae is None:
            return 1
        with self._awake("vae"), torch.no_grad():
            image = torch.zeros(1, 3, PROBE, PROBE, device=self.device, dtype=self.vae.dtype)
            image = image[:, :, None] if self.geometry.frames else image
            made = self.vae.encode(image)
        z = made.latent_dist.mean if hasattr(made, "latent_dist") else getattr(made, "latents", None)
        z = made.latent if z is None else z
        return PROBE // int(z.shape[-1])

    @property
    def unit(self) -> int:
        size = self._config.get("patch_size") or 1
        return int(size[-1] if isinstance(size, (list, tuple)) else size)

    # images

    def _framed(self, x: Tensor) -> Tensor:
        return x[:, :, None] if self.geometry.frames else x

    def normalise(self, z: Tensor) -> Tensor:
        return (z - self.geometry.offset.to(z)) / self.geometry.scale.to(z)

    def denormalise(self, x0: Tensor) -> Tensor:
        return x0 * self.geometry.scale.to(x0) + self.geometry.offset.to(x0)

    # prompts and the call

    def _said(self, text: str) -> str:
        """What the pipeline is told for a text: itself, or the number of a class."""
        if "text" in self.traits:
            return text
        if "classes" not in self.traits:
            if text:
                raise UnsuitableError(f"{self.name} takes no prompt.")
            return text
        labels = getattr(self.pipeline, "labels", {})
        none = int(self.denoiser.config.get("num_embeds_ada_norm") or 0)
        chosen = none if not text else labels.get(text, int(text) if text.isdigit() else -1)
        if not 0 <= chosen <= none:
            raise UnsuitableError(
                f"{self.name} is told a class: one of its labels, or a number in 0 ... {none - 1}; not {text!r}."
            )
        return str(chosen)

    def describe(self, texts: Sequence[str]) -> Conditioning:
        told = tuple(
            record(self.pipeline, self.denoiser, self.geometry, text=self._said(text), size=self._size)
            for text in texts
        )
        empty = torch.zeros(len(texts), 0, 1, device=self.device)
        return Conditioning(empty, told=told, prompts=tuple(texts))

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        raise ConfigurationError("What a recorded denoiser is told is known once its pipeline has run.")

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        if request.residuals:
            raise UnsuitableError(f"{self.name} is recorded, and takes no residuals.")
        rows = []
        for one, at, told in zip(x, t, given.told, strict=True):
            args, kwargs = self.geometry.filled(told, one, at)
            rows.append(self.geometry.prediction(self.denoiser(*args, **kwargs)))
        return torch.stack(rows)

    def activate(self, request: Request, layers: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        made = [PipelineBackbone.activate(self, row, layers) for row in _rows(request)]
        features = {layer: torch.cat([found[layer] for _, found in made]) for layer in layers}
        return torch.cat([prediction for prediction, _ in made]), features

    def reach(self, request: Request, layers: Sequence[str]) -> dict[str, Tensor]:
        made = [PipelineBackbone.reach(self, row, layers) for row in _rows(request)]
        return {layer: torch.cat([found[layer] for found in made]) for layer in layers}

    # layers

    @functools.cached_property
    def layer_paths(self) -> dict[str, str]:
        """Without the maps that nothing is in: of attention to a text that this denoiser does not read there."""
        every, (denoiser, forward, _) = layer_paths(self.denoiser), self.sketch()
        with torch.no_grad(), capture(denoiser, every, strict=False) as seen:
            forward()
        return {layer: path for layer, path in every.items() if layer not in seen or seen[layer].numel()}

    def layers(self) -> list[LayerInfo]:
        return [layer for layer in super().layers() if layer.id in self.layer_paths]

    def sketch(self, side: int = 0) -> Sketch:
        """Its denoiser on the meta device and the call for the neutral prompt; itself where that asks for numbers."""
        told = self.encode_prompts([""]).told[0]
        x, t = torch.zeros(self.geometry.shape, device=self.device, dtype=self.dtype), torch.tensor(1.0)
        given: Any = self.geometry.filled(told, x, t.to(self.device))
        with hushed(), torch.device("meta"):
            bare: Any = type(self.denoiser).from_config(self.denoiser.config).eval()
        empty = {path: v.to("meta") for path, v in leaves(given) if isinstance(v, Tensor)}

        def forward() -> Any:
            args, kwargs = replaced(given, empty)
            with torch.device("meta"):
                return bare(*args, **kwargs)

        try:
            with torch.no_grad():
                forward()
        except (RuntimeError, NotImplementedError, ValueError):  # its forward looks at what it is given
            return self.denoiser, lambda: self.denoiser(*given[0], **given[1]), self.side
        return bare, forward, self.side


def _rows(request: Request) -> list[Request]:
    """One request for each row."""
    return [
        request.with_(
            x_t=request.x_t[i : i + 1],
            t=request.t[i : i + 1],
            t_condition=request.t_condition[i : i + 1],
            eps=request.eps[i : i + 1],
            conditioning=request.conditioning.rows([i]),
        )
        for i in range(len(request.x_t))
    ]
