"""Flux 1: a transformer over packed 2x2 latents and T5's tokens, with a CLIP embedding beside t; flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gate.backbones.beside import latent_channels
from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request

TOKENS = 512
GUIDANCE = 1.0  # the plain prediction, not one that overshoots towards the prompt


class Flux(PipelineBackbone):
    """Black Forest Labs 2024: dev (guidance embedding) and schnell."""

    family = "flux"
    denoisers = frozenset({"FluxTransformer2DModel"})
    patch = 2
    packed = True

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(
            torch.empty(1, TOKENS, config["joint_attention_dim"]),
            torch.empty(1, config["pooled_projection_dim"]),
        )

    def describe(self, texts: Sequence[str]) -> Conditioning:
        ids, _ = self.tokenize(texts)
        pooled = self.text_encoder(ids).pooler_output
        states, _ = self.t5_states(texts, TOKENS, "_2", masked=False)
        return Conditioning(states, pooled, prompts=tuple(texts))

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        tokens: Tensor = self.denoiser(
            self.with_beside(pack(x), x),
            encoder_hidden_states=given.prompt_embeds,
            pooled_projections=given.pooled,
            timestep=(t / 1000).to(x),
            img_ids=grid(h, w).to(x),
            txt_ids=x.new_zeros(given.prompt_embeds.shape[1], 3),
            guidance=guidance(x, self._config),
            return_dict=False,
        )[0]
        return unpack(tokens, h, w)

    @classmethod
    def own_channels(cls, config: Mapping[str, Any]) -> int:
        return latent_channels(config)

    def with_beside(self, tokens: Tensor, x: Tensor) -> Tensor:
        """The tokens with what lies beside them: Flux Fill's masked image, and its mask, a channel for every pixel."""
        missing = int(self._config["in_channels"]) - tokens.shape[2]
        if not missing:
            return tokens
        if self.extra != "inpaint":
            return torch.cat([tokens, tokens.new_zeros(*tokens.shape[:2], missing)], dim=2)
        masked = pack(self.blank_latent(x))
        mask = tokens.new_ones(*tokens.shape[:2], missing - masked.shape[2])
        return torch.cat([tokens, masked, mask], dim=2)


def guidance(x: Tensor, config: Mapping[str, Any]) -> Tensor | None:
    """What a distilled model is told beside t, (b,); None for the others."""
    return x.new_full((len(x),), GUIDANCE) if config["guidance_embeds"] else None


def grid(h: int, w: int) -> Tensor:
    """(h w, 3): 0, row, column of every token."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)


def pack(x: Tensor) -> Tensor:
    """2x2 positions to a token: (b, c, 2h, 2w) -> (b, h w, 4c)."""
    return torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """The inverse of `pack`: (b, h w, 4c) -> (b, c, 2h, 2w)."""
    return torch.nn.functional.pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, h, w), 2)
