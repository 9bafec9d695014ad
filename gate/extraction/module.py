"""Features inside a training loop: a backbone with a technique as an `nn.Module`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gate.backbone import Backbone, LayerInfo
from gate.backbones import load_backbone
from gate.backbones.activations import Features
from gate.backbones.layers import resolve_layers
from gate.backbones.pipeline import PipelineBackbone
from gate.composition import Composition
from gate.data.memory import as_samples
from gate.errors import ConfigurationError, UsageError
from gate.extraction.residual import LowRank, projections
from gate.passes import single_pass
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import Sample, SampleSet
from gate.schedule import LEVEL
from gate.technique import Technique

STATE = "technique."  # before the names of what a technique learned, in a state_dict
SLACK = 0.1  # how far an optimised image may leave [0, 1] before it is taken for one of another range


class FeatureExtractor(nn.Module):
    """Images, (b, 3, h, w) floats in [0, 1], to {layer: (b, c, h, w)} on the images' device; maps are per head.

    The numbers are those of `backbone.extract` for the same images in batches of the same size, bit for bit on a CPU:
    the noise of an image is keyed by the seed and by its content (rounded to 8 bits, as files hold it).

    Gradients flow to images that ask for them, through the denoiser and the VAE's encoder, and with `adapter_rank` to
    low-rank residuals on the projections of the denoiser's attention (Hu et al. 2022), the module's only parameters.
    These begin at zero: until they learn, the features are the backbone's own. Noise and its key are constants. Where
    neither is asked for, no graph is built. Forwards stop after the last layer wherever the technique allows it.

    The backbone is frozen, in evaluation mode whatever `.train()` says, and no part of `parameters()` or of the
    `state_dict`, which holds the adapters and what the technique learned. `.to(device)` moves it, for everybody who
    shares it; a change of dtype is refused: load it in that dtype. Under `torch.autocast` the denoiser runs in the
    lower precision, latents and prompts do not. `copy.deepcopy` copies adapters and technique and shares the backbone;
    pickle is refused. One forward at a time: a technique changes the backbone while it runs.

    backbone: a name (`load_backbone`) or a Backbone. layers: ids, aliases, presets. fit_on: images for a technique that
    learns from some. Raises UsageError for unknown names and images of a wrong kind, UnsuitableError where the
    technique cannot serve, ConfigurationError where it cuts the gradients that are asked for.
    """

    def __init__(
        self,
        backbone: str | Backbone = "tiny",
        *,
        layers: str | Sequence[str] = "paper",
        timestep: int | None = None,
        technique: str | Technique = "",
        seed: int = 0,
        adapter_rank: int = 0,
        fit_on: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        self._shared = (load_backbone(backbone) if isinstance(backbone, str) else backbone,)  # no submodule
        self.layers = resolve_layers(layers, self.backbone.layer_paths)
        self.timestep = self.backbone.schedule.check(
            self.backbone.schedule.at(LEVEL) if timestep is None else timestep
        )
        self.seed = seed
        self.technique = _chosen(technique)
        self.backbone.calibrate(self.layers)
        if fit_on:
            samples = self.technique.visible(as_samples(fit_on, self.backbone.image_size))
            self.technique.check(self.backbone, samples)
            self.technique.fit(self.backbone, samples)
        self.adapters = LowRank({}, 0)
        if adapter_rank:
            self.adapters = LowRank(projections(self.backbone, self.timestep, self.layers), adapter_rank)
            self.adapters.to(self.backbone.device)

    @property
    def backbone(self) -> Backbone:
        """The denoiser with what surrounds it; shared, never copied."""
        return self._shared[0]

    @functools.cached_property
    def info(self) -> dict[str, LayerInfo]:
        """Channels, stride and cost of each wanted layer, for whoever builds a head."""
        return {row.id: row for row in self.backbone.layers() if row.id in self.layers}

    def forward(self, images: Tensor, captions: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Features of a batch. images: (b, 3, h, w) floats in [0, 1], of the backbone's size.

        captions: one per image, where the technique needs them. Aliases of layers are understood as keys.
        """
        backbone, technique = self.backbone, self.technique
        samples = technique.visible(self._samples(images, captions))
        technique.check(backbone, samples)
        asked = torch.is_grad_enabled() and (images.requires_grad or len(self.adapters) > 0)
        keep = _kept_for_backward() if asked and technique.attaches else contextlib.nullcontext()
        with torch.set_grad_enabled(asked), technique.attach(backbone), keep:
            with _plainly(backbone.device):
                batch = self._batch(images, samples)
                conditioning = technique.condition(batch.neutral, batch)
                request = batch.request(self.timestep, self.seed, conditioning).with_(outputs=False)
            with self.adapters.on(backbone.denoiser):
                features = single_pass(technique, request, self.layers).features
        self._check_gradients(features, asked)
        shaped = backbone.unfolded({layer: features[layer] for layer in self.layers})
        return Features({layer: feature.to(images.device) for layer, feature in shaped.items()})

    def _samples(self, images: Tensor, captions: Sequence[str] | None) -> SampleSet:
        """The images as they are known everywhere else: 8 bits, named by their content."""
        size = self.backbone.image_size
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1:] != (3, size, size):
            got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(
                f"{self.backbone.name} takes images of shape (b, 3, {size}, {size}), not {got}; resize them, or load "
                "the backbone with another image_size."
            )
        if not images.is_floating_point():
            raise UsageError(f"Images must be floats in [0, 1], not {images.dtype}; divide by 255.")
        if not len(images):
            raise UsageError("There are no images; give at least one.")
        known = images.detach().float().cpu()
        low, high = float(known.min()), float(known.max())
        if not (low >= -SLACK and high <= 1 + SLACK):
            raise UsageError(
                f"Images must lie in [0, 1]; these span {low:.3g} ... {high:.3g}. Undo what normalised them."
            )
        if captions is not None and len(captions) != len(images):
            raise UsageError(f"{len(images)} images came with {len(captions)} captions; give one for each.")
        # the detour is exact for 8-bit values: k / 255 * 255 rounds to k
        rounded = (known.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        texts: Sequence[str | None] = captions if captions is not None else [None] * len(images)
        return SampleSet(tuple(Sample(np.array(i), caption=c) for i, c in zip(rounded, texts, strict=True)))

    def _batch(self, images: Tensor, samples: SampleSet) -> Batch:
        """The batch with latents of the floats themselves: an image that is optimised is more than its 8 bits."""
        x0 = self.backbone.encode(images.float())
        return self.backbone.batch(samples.samples, x0, everyone=samples)

    def _check_gradients(self, features: Mapping[str, Tensor], asked: bool) -> None:
        cut = [layer for layer in self.layers if asked and not features[layer].requires_grad]
        if len(cut) == len(self.layers):
            reason = (
                f"{self.technique.name} gives features without a graph"
                if self.technique.name
                else "none flow"
            )
            raise ConfigurationError(
                f"Gradients were asked for and {reason}; call it under torch.no_grad(), or choose another technique or "
                "layer."
            )

    # where it is, and what is kept of it

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureExtractor:
        """Behind `.to()` and its kin: the backbone goes along, in the dtype that it has."""
        backbone = self.backbone
        probe = fn(torch.empty(0, dtype=backbone.dtype, device=backbone.device))
        if probe.dtype != backbone.dtype:
            raise UsageError(
                f"{backbone.name} stays in {backbone.dtype}; load it in another, as in FeatureExtractor("
                f'load_backbone("{backbone.name}", dtype="{str(probe.dtype).removeprefix("torch.")}")).'
            )
        if probe.device != backbone.device:
            if not isinstance(backbone, PipelineBackbone):
                raise UsageError(f"{backbone.name} cannot be moved; load it on {probe.device}.")
            backbone.move(probe.device)
            self.technique = _renewed(self.technique)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, value in self.technique.state().items():
            destination[f"{prefix}{STATE}{key}"] = value

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        missing, unexpected = lists[0], lists[1]
        head = prefix + STATE
        given = {key[len(head) :]: state_dict.pop(key) for key in list(state_dict) if key.startswith(head)}
        if given:
            self.technique.load_state(given)
            unexpected += [head + key for key in given.keys() - self.technique.state().keys()]
        else:
            missing += [head + key for key in self.technique.state()]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureExtractor:
        made: FeatureExtractor = type(self).__new__(type(self))
        memo[id(self)] = made
        held = {**vars(self), "technique": _renewed(self.technique)}
        shared = held.pop("_shared")
        vars(made).update({name: copy.deepcopy(value, memo) for name, value in held.items()}, _shared=shared)
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError(
            "A FeatureExtractor is not pickled, for its backbone would be; save its state_dict(), and make it anew "
            "where it is needed (in worker processes too)."
        )

    def extra_repr(self) -> str:
        named = f", technique={self.technique.name}" if self.technique.name else ""
        return f"{self.backbone.name}, layers={list(self.layers)}, timestep={self.timestep}, seed={self.seed}{named}"


@contextlib.contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """Neither autocast nor inference mode: what is kept of prompts serves every later call, in whatever mode."""
    graph = torch.is_grad_enabled()
    with (
        torch.inference_mode(False),  # it would switch gradients on
        torch.set_grad_enabled(graph),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def _kept_for_backward() -> Any:
    """What a backward pass will read is kept as it is now: a technique's weights are swapped out before it runs.

    Autograd keeps a frozen weight by reference, and would find the backbone's own there.
    """

    def pack(t: Tensor) -> tuple[Tensor, int]:
        return (t if t.requires_grad else t.detach()), t._version

    def unpack(kept: tuple[Tensor, int]) -> Tensor:
        if kept[0]._version != kept[1]:  # autograd's own check is off where there are hooks
            raise RuntimeError("A tensor that the gradients need was overwritten in place.")
        return kept[0]

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _chosen(technique: str | Technique) -> Technique:
    if isinstance(technique, str):
        return create_technique(technique) if technique else Technique()
    return technique


def _renewed(technique: Technique) -> Technique:
    """The same technique with its settings and what it learned, and nothing that it loaded for one device."""
    fresh = copy.copy(technique)
    if isinstance(fresh, Composition):
        fresh.parts = tuple(_renewed(part) for part in fresh.parts)
        return fresh
    for held in dataclasses.fields(fresh):
        if not held.init:
            made = held.default_factory() if callable(held.default_factory) else held.default
            setattr(fresh, held.name, made)
    if state := technique.state():
        fresh.load_state(state)
    return fresh
