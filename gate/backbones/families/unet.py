"""Stable Diffusion 1.x/2.x and kin: a latent UNet with cross-attention to a CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.beside import guidance_embedding, latent_channels
from gate.backbones.index import part_of
from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request

TOKENS = 77  # of CLIP


class LatentUNet(PipelineBackbone):
    """vae, text_encoder, tokenizer, unet, scheduler."""

    family = "unet"
    denoisers = frozenset({"UNet2DConditionModel"})
    half = torch.float16

    @classmethod
    def serves(cls, index: Mapping[str, Any]) -> bool:
        encoder, second = part_of(index, "text_encoder")[1], part_of(index, "text_encoder_2")[1]
        return super().serves(index) and encoder == "CLIPTextModel" and not second

    def describe(self, texts: Sequence[str]) -> Conditioning:
        ids, _ = self.tokenize(texts)
        return Conditioning(self.text_encoder(ids)[0], prompts=tuple(texts))

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(
            torch.empty(1, TOKENS, config["encoder_hid_dim"] or config["cross_attention_dim"])
        )

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        extra: dict[str, Any] = {  # lists, and fresh ones: the UNet takes them apart
            k: list(v) if isinstance(v, tuple) else v for k, v in request.residuals.items()
        }
        cond = guidance_embedding(self._config, x)
        if cond is not None:
            extra["timestep_cond"] = cond
        added = self.added(given)
        projection: Any = getattr(self.denoiser, "encoder_hid_proj", None)
        if hasattr(projection, "blank"):  # an IP-Adapter is worn: without an image it sees zeros
            image = given.image_embeds
            if image is None:
                image = projection.blank.expand(len(x), *projection.blank.shape)
            added["image_embeds"] = [image.to(self.dtype)]
        if added:
            extra["added_cond_kwargs"] = added
        output: Tensor = self.denoiser(
            self.with_beside(x), t, encoder_hidden_states=given.prompt_embeds, return_dict=False, **extra
        )[0]
        return output

    @classmethod
    def own_channels(cls, config: Mapping[str, Any]) -> int:
        return latent_channels(config)

    def with_beside(self, x: Tensor) -> Tensor:
        """The latent with what lies beside it, (b, in_channels, h, w): mask and masked image, or no image."""
        if self.extra == "inpaint":
            return torch.cat([x, torch.ones_like(x[:, :1]), self.blank_latent(x)], dim=1)
        missing = int(self._config["in_channels"]) - x.shape[1] if self.extra else 0
        return torch.cat([x, x.new_zeros(len(x), missing, *x.shape[2:])], dim=1) if missing else x

    def added(self, given: Conditioning) -> dict[str, Any]:
        """What the time embedding takes besides t."""
        return {}
