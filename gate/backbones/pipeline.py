"""What all families share: parts, device, dtype, the encode loop, the prompt cache, the call, the fingerprint."""

# long: what every family shares stands in one class
from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gate.backbone import Backbone, LayerInfo, is_map
from gate.backbones.activations import Features, capture
from gate.backbones.beside import Extra, extra_channels, refuse_classes
from gate.backbones.codec import Codec
from gate.backbones.index import part_of, weights_hash
from gate.backbones.layers import layer_paths, resolve_layers
from gate.backbones.maps import per_head, spatial
from gate.backbones.massive import massive_channels, without
from gate.backbones.prompts import Prompts
from gate.backbones.sketch import Sketch, listed, sketched
from gate.data.memory import as_samples
from gate.errors import UsageError
from gate.machine import one_fits
from gate.passes import Plan, stream
from gate.registry import create_technique
from gate.request import Conditioning, Request
from gate.sample import Sample
from gate.schedule import LEVEL, NoiseSchedule
from gate.technique import Technique

CALIBRATION = 0.05  # of the schedule, where massive channels are looked for
HEADS = ("unet", "transformer")


class PipelineBackbone(Codec, Backbone):
    """A pipeline in diffusers' format. A family says what is its own: `serves`, `describe` and `call`.

    Facts: `denoisers`, diffusers' classes that it calls; `parts`, further classes that it takes besides those of
    gate/backbones/trusted.py, as "transformers.Class"; `half`, what `--dtype auto` is on a GPU; `patch`, how many
    latent positions a side become one token (None: the config's patch_size); `packed`, whether the family does that
    itself; `default_side`, of the latent, where a denoiser's config names no size: 1024 px; `widened`, whether its
    parts may be any class of diffusers and transformers.
    """

    denoisers: ClassVar[frozenset[str]] = frozenset()
    parts: ClassVar[frozenset[str]] = frozenset()
    half: ClassVar[torch.dtype] = torch.bfloat16
    patch: ClassVar[int | None] = None
    packed: ClassVar[bool] = False
    default_side: ClassVar[int] = 128
    widened: ClassVar[bool] = False
    denoiser: Any
    text_encoder: Any = None

    def __init__(
        self,
        name: str,
        source: Path,
        index: Mapping[str, Any],
        parts: Mapping[str, Any],
        *,
        device: torch.device,
        dtype: torch.dtype,
        image_size: int | None = None,
        offload: bool = False,
    ) -> None:
        self.name, self.source, self.device, self.dtype = name, source, device, dtype
        self.extra = self.accepts(name, index, next(v for p, v in parts.items() if p in HEADS).config)
        self.index, self.offload = index, offload
        self.tokenizer: Any = None
        for part, value in parts.items():
            if isinstance(value, nn.Module):
                value.eval().requires_grad_(False)
            if part in HEADS:
                self.denoiser = value
            elif part != "scheduler":
                setattr(self, "vae" if part == "vqvae" else part, value)
        self.encoders = [part for part in sorted(parts) if part.startswith("text_encoder")]
        self._place()
        self._config: Mapping[str, Any] = self.denoiser.config
        self.image_size = self._chosen_size(image_size)
        self.scheduler_config: Mapping[str, Any] = parts["scheduler"]
        self.schedule = self._noise_levels(self.scheduler_config)
        self._prompts = Prompts()
        self.massive: dict[str, Tensor] = {}
        self._blank = self._encode_blank() if self.extra == "inpaint" else None

    # what a family says of itself

    @classmethod
    def serves(cls, index: Mapping[str, Any]) -> bool:
        """Whether this model_index.json is of the family."""
        return part_of(index, "unet", "transformer")[1] in cls.denoisers

    @classmethod
    def own_channels(cls, config: Mapping[str, Any]) -> int:
        """Of the latent, as the denoiser's config counts them; the others lie beside it."""
        return int(config["in_channels"])

    @classmethod
    def accepts(cls, name: str, index: Mapping[str, Any], config: Mapping[str, Any]) -> Extra:
        """What lies beside the latent. Raises ConfigurationError where the denoiser needs what no image comes with."""
        refuse_classes(name, index, config, labels="classes" in cls.traits)
        return extra_channels(name, index, config, cls.own_channels(config))

    @abc.abstractmethod
    def describe(self, texts: Sequence[str]) -> Conditioning:
        """Texts through tokenizers and text encoders as they are now; of a fixed number of tokens."""

    @abc.abstractmethod
    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        """The denoiser's output, (b, c, h, w) or twice the channels. x: (b, c, h, w) in `dtype`; t: (b,), as told."""

    @classmethod
    @abc.abstractmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        """A conditioning of one row, by its shapes alone, for a denoiser with this config."""

    # beside the latent

    def _encode_blank(self) -> Tensor:
        """(1, c, h, w): of a grey image, what a mask of ones leaves of any."""
        with torch.no_grad():
            return self.encode(torch.full((1, 3, self.image_size, self.image_size), 0.5))

    def blank_latent(self, like: Tensor) -> Tensor:
        """Of as many rows as `like`, which is a latent; zeros in a sketch, which has no VAE."""
        blank = self._blank
        return torch.zeros_like(like) if blank is None else blank.to(like).expand(len(like), -1, -1, -1)

    # sizes

    @property
    def unit(self) -> int:
        """Latent positions a side of one token."""
        return int(self.patch or self._config.get("patch_size") or 1)

    @property
    def side(self) -> int:
        """Of the latent."""
        return self.image_size // self.factor

    @classmethod
    def native_side(cls, config: Mapping[str, Any]) -> int:
        """Of the latent that a denoiser with this config was made for."""
        size = config.get("sample_size") or cls.default_side
        return int(min(size) if isinstance(size, (tuple, list)) else size)

    def _noise_levels(self, config: Mapping[str, Any]) -> NoiseSchedule:
        """Of a scheduler's config, at this image size."""
        return NoiseSchedule.from_config(config, tokens=(self.side // self.unit) ** 2)

    def _chosen_size(self, asked: int | None) -> int:
        whole = self.native_side(self._config) * self.factor
        if asked is None:
            return whole
        step = self.factor * self.unit
        if asked < step or asked % step:
            raise UsageError(f"{self.name} takes images whose side is a multiple of {step}, not {asked} px.")
        return asked

    # prompts

    def tokenize(self, texts: Sequence[str], length: int = 0, which: str = "") -> tuple[Tensor, Tensor]:
        """Token ids and mask, (b, n) each, of `tokenizer`, `tokenizer_2` ("_2") ...; length: 0 is the tokenizer's."""
        tokenizer = getattr(self, f"tokenizer{which}")
        read = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length or tokenizer.model_max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return read.input_ids.to(self.device), read.attention_mask.to(self.device)

    def clip_states(self, texts: Sequence[str], which: str = "") -> tuple[Tensor, Tensor]:
        """Of a CLIP text encoder: the last but one layer's states, (b, n, d), and its first output (pooled, if any)."""
        ids, _ = self.tokenize(texts, which=which)
        output = getattr(self, f"text_encoder{which}")(ids, output_hidden_states=True)
        return output.hidden_states[-2], output[0]

    def t5_states(
        self, texts: Sequence[str], length: int, which: str = "", masked: bool = True
    ) -> tuple[Tensor, Tensor]:
        """States (b, n, d) of a T5 (or Gemma) encoder, and the mask (b, n); masked: whether it sees the mask."""
        ids, mask = self.tokenize(texts, length, which)
        encoder = getattr(self, f"text_encoder{which}")
        return encoder(ids, attention_mask=mask if masked else None)[0].to(self.dtype), mask

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        with self._awake(*self.encoders):
            return self.describe(texts).prompt_embeds

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        rows = self._prompts.rows(prompts, self._encode_new)
        return Conditioning.join(rows).replace(prompts=tuple(prompts))

    def _encode_new(self, prompts: Sequence[str]) -> dict[str, Conditioning]:
        """One at a time: a prompt's bits do not depend on its neighbours."""
        with self._awake(*self.encoders), torch.no_grad(), one_fits("encoding one prompt"):
            return {prompt: self.describe([prompt]) for prompt in prompts}

    @contextlib.contextmanager
    def prompts_anew(self, tokenizer: Any = None, text_encoder: Any = None) -> Iterator[None]:
        held = self._prompts, self.tokenizer, self.text_encoder
        self._prompts = Prompts()
        self.tokenizer, self.text_encoder = tokenizer or self.tokenizer, text_encoder or self.text_encoder
        try:
            yield
        finally:
            self._prompts, self.tokenizer, self.text_encoder = held

    @property
    def components(self) -> dict[str, nn.Module]:
        head = "unet" if part_of(self.index, "unet")[1] else "transformer"
        return {head: self.denoiser, **{part: getattr(self, part) for part in self.encoders}}

    # layers and the call

    @functools.cached_property
    def layer_paths(self) -> dict[str, str]:
        return layer_paths(self.denoiser)

    def layers(self) -> list[LayerInfo]:
        return listed(*self.sketch())

    def sketch(self, side: int = 0) -> Sketch:
        """The denoiser without weights, its forward, and the latent's side (0: what it was made for)."""
        return sketched(type(self), type(self.denoiser).__name__, self._config, side)

    def calibrate(self, layers: Sequence[str]) -> None:
        """Find the massive channels of a transformer's layers, on noise that depends on nothing but the model."""
        new = {
            layer: self.layer_paths[layer]
            for layer in layers
            if layer not in self.massive and not is_map(self.layer_paths[layer])
        }
        if not new or not part_of(self.index, "transformer")[1]:
            return
        sample = Sample(np.full((self.image_size, self.image_size, 3), 128, np.uint8))
        one = one_fits("one call of the denoiser for one image")
        with torch.no_grad(), one, capture(self.denoiser, new) as seen:
            self.predict(self.batch([sample]).request(self.schedule.at(CALIBRATION), 0))
        self.massive |= {layer: massive_channels(seen[layer]) for layer in new}

    def settled(self, layer: str, feature: Tensor) -> Tensor:
        channels = self.massive.get(layer)
        return feature if channels is None else without(feature, channels)

    def activate(self, request: Request, layers: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        places = {layer: self.layer_paths[layer] for layer in layers}
        if not places:
            return self.predict(request), {}
        with capture(self.denoiser, places) as seen:
            prediction = self.predict(request)
        return prediction, self._features(seen, places, request)

    def reach(self, request: Request, layers: Sequence[str]) -> dict[str, Tensor]:
        if self.offload:  # layers come to the device and leave it by hooks that count on a whole forward
            return self.activate(request, layers)[1]
        places = {layer: self.layer_paths[layer] for layer in layers}
        with capture(self.denoiser, places, stop=True) as seen:
            self.predict(request)
        return self._features(seen, places, request)

    def _features(
        self, seen: Mapping[str, Tensor], places: Mapping[str, str], request: Request
    ) -> dict[str, Tensor]:
        grid = (request.x_t.shape[-2], request.x_t.shape[-1])
        return {
            layer: spatial(seen[layer], grid) if is_map(path) else self.settled(layer, seen[layer])
            for layer, path in places.items()
        }

    def predict(self, request: Request) -> Tensor:
        """The denoiser's raw output, (b, c, h, w), in `dtype`."""
        x = request.x_t.to(self.dtype)
        t = self.schedule.told(request.t_condition).to(self.device)
        output = self.call(x, t, request.conditioning, request)
        if output.shape[1] == 2 * x.shape[1]:  # learned variances follow the prediction
            output = output[:, : x.shape[1]]
        return output

    def extract(
        self,
        images: Sequence[Any],
        *,
        layers: str | Sequence[str] = "paper",
        timestep: int | None = None,
        technique: str | Any = "",
        seed: int = 0,
        batch_size: int = 8,
    ) -> dict[str, Tensor]:
        """Features {layer: (n, c, h, w)} on the CPU; maps are (n, heads, positions, keys).

        images: Samples, PIL images or (h, w, 3) uint8 arrays. layers: ids, aliases, presets; aliases are keys too.
        timestep: None is at 5 % of the schedule: 50 of 1000.
        """
        samples = as_samples(images, self.image_size)
        chosen = create_technique(technique) if isinstance(technique, str) and technique else technique
        active = chosen or Technique()
        wanted = resolve_layers(layers, self.layer_paths)
        self.calibrate(wanted)
        visible = active.visible(samples)
        active.check(self, visible)
        active.fit(self, visible)
        parts: dict[str, list[Tensor]] = {layer: [] for layer in wanted}
        level = self.schedule.at(LEVEL) if timestep is None else timestep
        plan = Plan(self, active, samples, (level,), (seed,), wanted, batch_size, outputs=False)
        with contextlib.closing(stream(plan)) as passes:
            for passed in passes:
                for layer, value in passed.response.features.items():
                    parts[layer].append(value.cpu())
        return Features(self.unfolded({layer: torch.cat(values) for layer, values in parts.items()}))

    def unfolded(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = dict(features)
        for layer in made:
            if is_map(self.layer_paths[layer]):
                attention: Any = self.denoiser.get_submodule(self.layer_paths[layer].partition(":")[0])
                made[layer] = per_head(made[layer], getattr(attention, "heads", 1))
        return made

    def fingerprint(self) -> str:
        return weights_hash(self.source)

    # where the parts are

    def move(self, device: torch.device) -> None:
        """All parts to another device; what was made on the old one (prompts) is made anew. Not with `offload`."""
        if self.offload:
            raise UsageError(
                f"{self.name} brings its parts to {self.device} itself (offload); load it without."
            )
        self.device, self._prompts = device, Prompts()
        self._place()

    def _place(self) -> None:
        """Everything on the device; with `offload`, encoders come when they are called and layers one by one."""
        rest = [p for p in [getattr(self, part) for part in self.encoders] + [self.vae] if p is not None]
        for module in rest:
            module.to("cpu" if self.offload else self.device)
        if self.offload and self.device.type != "cpu":
            self.denoiser.enable_group_offload(
                onload_device=self.device, offload_device=torch.device("cpu"), offload_type="leaf_level"
            )
        else:
            self.denoiser.to(self.device)

    @contextlib.contextmanager
    def _awake(self, *parts: str) -> Iterator[None]:
        """With `offload`, these parts are on the device for a while."""
        modules = [
            getattr(self, part) for part in parts if self.offload and getattr(self, part, None) is not None
        ]
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")
