"""Qwen-Image: a joint transformer over packed 2x2 latents and Qwen2.5-VL's tokens, on a video VAE; flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.families.flux import guidance, pack, unpack
from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request

TOKENS = 256  # kept of a prompt; the pipeline's 1024 would be padding almost throughout
BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)  # the model's own template: training had it before every prompt
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


class QwenImage(PipelineBackbone):
    """Wu et al. 2025. The template's own tokens are dropped after encoding."""

    family = "qwen-image"
    denoisers = frozenset({"QwenImageTransformer2DModel"})
    patch = 2
    packed = True

    @property
    def factor(self) -> int:
        return int(2 ** len(self.vae.config.temperal_downsample))

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, TOKENS, config["joint_attention_dim"]))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        self.tokenizer.padding_side = "right"
        skip = len(self.tokenizer(BEFORE).input_ids)
        ids, mask = self.tokenize([f"{BEFORE}{text}{AFTER}" for text in texts], skip + TOKENS)
        states = self.text_encoder(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states[-1]
        kept = mask[:, skip:]
        return Conditioning(states[:, skip:] * kept[..., None].to(states), mask=kept, prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        tokens: Tensor = self.denoiser(
            pack(x),
            encoder_hidden_states=given.prompt_embeds,
            encoder_hidden_states_mask=given.mask,
            timestep=(t / 1000).to(x),
            img_shapes=[[(1, h, w)]] * len(x),
            guidance=guidance(x, self._config),
            return_dict=False,
        )[0]
        return unpack(tokens, h, w)
