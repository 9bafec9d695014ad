"""Stable Diffusion 1.x/2.x and kin: a latent UNet with cross-attention to a CLIP text encoder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gate.backbone.contract import Backbone
from gate.backbone.layers import LayerInfo, layer_paths, unet_layers
from gate.errors import ConfigurationError, MissingWeightsError
from gate.request import Conditioning, Request
from gate.schedule import NoiseSchedule


class LatentUNet(Backbone):
    """A pipeline folder in diffusers' format: vae, text_encoder, tokenizer, unet, scheduler."""

    family = "unet"

    def __init__(
        self, name: str, folder: Path, index: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        import diffusers
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.name, self.source, self.device, self.dtype, self.calls = name, folder, device, dtype, 0
        options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
        try:
            vae_class = getattr(diffusers, index["vae"][1])
            self.vae = vae_class.from_pretrained(folder / "vae", **options).to(device).eval()
            unet = (
                diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **options).to(device).eval()
            )
            self.text_encoder = CLIPTextModel.from_pretrained(
                folder / "text_encoder", dtype=dtype, use_safetensors=True, local_files_only=True
            )
            self.text_encoder.to(device).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        except OSError as error:
            first = str(error).strip().splitlines()[0]
            raise MissingWeightsError(f"{name} is not complete in its folder: {first}") from error
        self.denoiser = unet
        self._config: Mapping[str, Any] = unet.config
        for module in (self.vae, unet, self.text_encoder):
            module.requires_grad_(False)
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        self.schedule = NoiseSchedule.from_config(scheduler)
        blocks = len(self.vae.config.block_out_channels) - 1
        self.image_size = int(unet.config.sample_size) * 2**blocks
        self._prompts: dict[str, Tensor] = {}

    @property
    def _scaling(self) -> tuple[float, float]:
        return float(self.vae.config.scaling_factor), float(
            getattr(self.vae.config, "shift_factor", None) or 0.0
        )

    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([self._encode_one(image[None]) for image in images])

    def _encode_one(self, image: Tensor) -> Tensor:
        """One at a time: an image's latent then has the same bits in every batch, and on CPUs it is no slower."""
        scale, shift = self._scaling
        with torch.no_grad():
            posterior = self.vae.encode((image * 2 - 1).to(self.device, self.dtype))
        mean: Tensor = posterior.latent_dist.mean if hasattr(posterior, "latent_dist") else posterior.latents
        return (mean - shift) * scale

    def decode(self, x0: Tensor) -> Tensor:
        scale, shift = self._scaling
        with torch.no_grad():
            images = torch.cat([self.vae.decode(x[None].to(self.dtype) / scale + shift).sample for x in x0])
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        embeddings: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return embeddings

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._prompts:  # one at a time: a prompt's bits do not depend on its neighbours
                with torch.no_grad():
                    self._prompts[prompt] = self.encode_texts([prompt])[0]
        return Conditioning(torch.stack([self._prompts[p] for p in prompts]), prompts=tuple(prompts))

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"unet": self.denoiser, "text_encoder": self.text_encoder}

    @contextlib.contextmanager
    def prompts_anew(self, tokenizer: Any = None, text_encoder: Any = None) -> Iterator[None]:
        held = self._prompts, self.tokenizer, self.text_encoder
        self._prompts = {}
        self.tokenizer, self.text_encoder = tokenizer or self.tokenizer, text_encoder or self.text_encoder
        try:
            yield
        finally:
            self._prompts, self.tokenizer, self.text_encoder = held

    @functools.cached_property
    def layer_paths(self) -> dict[str, str]:
        return layer_paths(self.denoiser)

    def layers(self) -> list[LayerInfo]:
        return unet_layers(self._config)

    def predict(self, request: Request) -> Tensor:
        extra: dict[str, Any] = {  # lists, and fresh ones: the UNet takes them apart
            k: list(v) if isinstance(v, tuple) else v for k, v in request.residuals.items()
        }
        projection = getattr(self.denoiser, "encoder_hid_proj", None)
        if projection is not None:  # an IP-Adapter is worn: without an image it sees zeros
            given = request.conditioning.image_embeds
            image = (
                projection.blank.expand(len(request.x_t), *projection.blank.shape) if given is None else given
            )
            extra["added_cond_kwargs"] = {"image_embeds": [image.to(self.dtype)]}
        output = self.denoiser(
            request.x_t.to(self.dtype),
            request.t_condition.to(self.device),
            encoder_hidden_states=request.conditioning.prompt_embeds,
            return_dict=False,
            **extra,
        )[0]
        assert isinstance(output, Tensor)
        return output

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for file in sorted(self.source.glob("*/*.safetensors")):
            digest.update(file.relative_to(self.source).as_posix().encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()


def check_index(name: str, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline that is not a latent UNet with one CLIP text encoder."""
    denoiser = (index.get("unet") or [None, None])[1]
    if denoiser != "UNet2DConditionModel" or index.get("text_encoder_2") or not index.get("text_encoder"):
        raise ConfigurationError(
            f"{name} is a {index.get('_class_name', 'pipeline')}; only latent UNets with one CLIP text encoder "
            "(Stable Diffusion 1.x and 2.x and kin) are served."
        )
