"""Flux 2, dev and klein: a transformer over 2x2 patches of a normalised latent and a language model's states; flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from gate.backbones.families.flux import guidance
from gate.backbones.pipeline import PipelineBackbone
from gate.request import Conditioning, Request

TOKENS = 512
STATES = {"Qwen3ForCausalLM": (9, 18, 27)}  # which layers' states are the text, side by side; of Mistral:
MISTRAL_STATES = (10, 20, 30)


class Flux2(PipelineBackbone):
    """Black Forest Labs 2025. klein reads with Qwen3, dev with Mistral 3 under a system message."""

    family = "flux2"
    denoisers = frozenset({"Flux2Transformer2DModel"})
    patch = 1
    default_side = 64

    @property
    def factor(self) -> int:
        return 2 * super().factor

    def normalise(self, z: Tensor) -> Tensor:
        mean, std = self._moments(z)
        return (pixel_unshuffle(z, 2) - mean) / std

    def denormalise(self, x0: Tensor) -> Tensor:
        mean, std = self._moments(x0)
        return pixel_shuffle(x0 * std + mean, 2)

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Per channel, as the VAE's batch norm learned them."""
        norm = self.vae.bn
        std = (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.view(1, -1, 1, 1).to(like), std.view(1, -1, 1, 1).to(like)

    @classmethod
    def blank(cls, config: Mapping[str, Any]) -> Conditioning:
        return Conditioning(torch.empty(1, TOKENS, config["joint_attention_dim"]))

    def describe(self, texts: Sequence[str]) -> Conditioning:
        kept = STATES.get(type(self.text_encoder).__name__, MISTRAL_STATES)
        ids, mask = self.tokenize([self._chat(text) for text in texts], TOKENS)
        states = self.text_encoder(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        embeds = torch.cat([states[layer] for layer in kept], dim=-1)
        return Conditioning(embeds, prompts=tuple(texts))

    def _chat(self, text: str) -> str:
        said: Any = [{"role": "user", "content": text}]
        options: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": False}
        if type(self.text_encoder).__name__ not in STATES:
            from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

            told = (("system", SYSTEM_MESSAGE), ("user", text.replace("[IMG]", "")))
            said = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in told]
            options = {"add_generation_prompt": False}
        made: str = self.tokenizer.apply_chat_template(said, tokenize=False, **options)
        return made

    def call(self, x: Tensor, t: Tensor, given: Conditioning, request: Request) -> Tensor:
        b, _, h, w = x.shape
        n = given.prompt_embeds.shape[1]
        zero = torch.zeros(1, dtype=torch.long)
        places = torch.cartesian_prod(zero, torch.arange(h), torch.arange(w), zero)
        words = torch.cartesian_prod(zero, zero, zero, torch.arange(n))
        tokens: Tensor = self.denoiser(
            x.flatten(2).transpose(1, 2),
            encoder_hidden_states=given.prompt_embeds,
            timestep=(t / 1000).to(x),
            img_ids=places.to(x.device).expand(b, -1, -1),
            txt_ids=words.to(x.device).expand(b, -1, -1),
            guidance=guidance(x, self._config),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).reshape(x.shape)
