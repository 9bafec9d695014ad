"""DeepFloyd IF, stage I: a UNet whose latents are the pixels, under a T5 text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gate.backbones.beside import Extra
from gate.backbones.families.unet import LatentUNet
from gate.backbones.index import part_of
from gate.backbones.pipeline import PipelineBackbone
from gate.errors import ConfigurationError
from gate.request import Conditioning, Request

TOKENS = 77  # what IF was trained with


class PixelUNet(PipelineBackbone):
    """text_encoder, tokenizer, unet, scheduler; it predicts eps and variances."""

    family = "pixel-unet"
    denoisers = frozenset({"UNet2DConditionModel"})

    @classmethod
    def serves(cls, index: Mapping[str, Any]) -> bool:
        no_vae = not part_of(index, "vae")[1]
        return super().serves(index) and no_vae and part_of(index, "text_encoder")[1] == "T5EncoderModel"

    @classmethod
    def accepts(cls, name: str, index: Mapping[str, Any], config: Mapping[str, Any]) -> Extra:
        if config["in_channels"] != 3:
            raise ConfigurationError(f"{name} enlarges another model's images; load the first stage instead.")
        return super().accepts(name, index, config)

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return LatentUNet.blank(config)  # of the same class, and of as many tokens

    def describe(self, texts: Sequence[str]) -> Conditioning:
        states, _ = self.t5_states([text.lower().strip() for text in texts], TOKENS)
        return Conditioning(states, prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        output: Tensor = self.denoiser(x, t, encoder_hidden_states=given.prompt_embeds, return_dict=False)[0]
        return output
