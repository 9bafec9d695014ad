"""Kolors: the UNet of SDXL under a ChatGLM text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gate.backbones.families.sdxl import LatentUNetXL
from gate.backbones.index import part_of
from gate.request import Conditioning

TOKENS = 256


class Kolors(LatentUNetXL):
    """Kolors Team 2024. ChatGLM's states are (n, b, d); the last token's last state is the pooled embedding."""

    family = "kolors"

    @classmethod
    def serves(cls, index: Mapping[str, Any]) -> bool:
        unet = part_of(index, "unet")[1] in cls.denoisers
        return unet and part_of(index, "text_encoder")[1] == "ChatGLMModel"

    def describe(self, texts: Sequence[str]) -> Conditioning:
        read = self.tokenizer(
            list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).to(self.device)
        states = self.text_encoder(
            input_ids=read["input_ids"],
            attention_mask=read["attention_mask"],
            position_ids=read["position_ids"],
            output_hidden_states=True,
        ).hidden_states
        embeds, pooled = states[-2].permute(1, 0, 2).contiguous(), states[-1][-1]
        if self.index.get("force_zeros_for_empty_prompt"):
            said = torch.tensor([bool(text) for text in texts], device=embeds.device)
            embeds = embeds * said.view(-1, 1, 1)
        return Conditioning(embeds, pooled, time_ids=self._time_ids(embeds), prompts=tuple(texts))
