"""The loop that a user writes: diffusers' parts, forward hooks, everything again for each technique, seed and timestep.

Nothing of `gate` computes anything here but the draws of the noise, so that outputs can be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.job import Job, Outputs
from gate.backbone import Backbone


class HookLoop:
    """Rows "hooks": float32 as loaded, or half precision with channels_last, or compiled as well.

    encode_alone: images are encoded one by one, as `gate` does; a user encodes the batch, and gets other last bits.
    """

    def __init__(
        self,
        backbone: Backbone,
        job: Job,
        *,
        compiled: bool = False,
        encode_alone: bool = False,
        explicit: bool = True,
    ) -> None:
        self.job, self.encode_alone = job, encode_alone
        self.vae: Any = backbone.vae  # type: ignore[attr-defined]
        self.denoiser: Any = backbone.denoiser
        self.backbone, self.dtype = backbone, backbone.dtype
        self.signal, self.sigma = backbone.schedule.signal.float(), backbone.schedule.noise.float()
        self.places = {layer: backbone.layer_paths[layer] for layer in job.layers}
        self.maps = [layer for layer, path in self.places.items() if path.endswith(":map")]
        self.explicit = explicit and bool(self.maps)
        self.seen: dict[str, Tensor] = {}
        self.compiled = compiled
        self.call: Callable[..., Any] = self.denoiser
        self.encode: Callable[..., Any] = self.vae.encode

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Hooks on, processors exchanged, the denoiser compiled: what a user does once."""
        processors = self._exchanged() if self.explicit else None
        handles = [self._hooked(layer, path) for layer, path in self.places.items() if layer not in self.maps]
        if self.compiled and self.call is self.denoiser:
            self.call, self.encode = torch.compile(self.denoiser), torch.compile(self.vae.encode)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if processors is not None:
                self.denoiser.set_attn_processor(processors)

    @torch.no_grad()
    def __call__(self) -> Outputs:
        job, found = self.job, {}
        images = job.images
        for k, prompt in enumerate(job.prompts):
            text = self._text(prompt)
            for t in job.timesteps:
                for seed in job.seeds:
                    parts = [self._pass(images[rows], rows, text, t, seed) for rows in job.batches]
                    found[k, t, seed] = {layer: torch.cat([p[layer] for p in parts]) for layer in job.layers}
        return found

    def _pass(
        self, images: Tensor, rows: slice, text: dict[str, Tensor], t: int, seed: int
    ) -> dict[str, Tensor]:
        x0 = self._latents(images)
        noise = self.job.noise(rows, seed, x0.shape[1:])
        x_t = (self.signal[t] * x0 + self.sigma[t] * noise.to(x0)).to(self.dtype)
        self.seen.clear()
        given = {key: value.repeat(len(x_t), *[1] * (value.ndim - 1)) for key, value in text.items()}
        self._denoise(x_t, torch.full((len(x_t),), t, device=x_t.device), given)
        return {layer: self.seen[layer].cpu() for layer in self.job.layers}

    def _latents(self, images: Tensor) -> Tensor:
        pixels = (images * 2 - 1).to(self.backbone.device, self.dtype)
        groups = pixels.split(1) if self.encode_alone else (pixels,)
        means = [self.encode(group).latent_dist.mean for group in groups]
        return torch.cat(means).float() * self.vae.config.scaling_factor

    def _text(self, prompt: str) -> dict[str, Tensor]:
        made = self.backbone.describe([prompt])  # type: ignore[attr-defined]
        return {"embeds": made.prompt_embeds, **({} if made.mask is None else {"mask": made.mask})}

    def _denoise(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> None:
        if hasattr(self.denoiser, "down_blocks"):
            self.call(x, t, encoder_hidden_states=text["embeds"], return_dict=False)
            return
        self.call(
            x,
            encoder_hidden_states=text["embeds"],
            encoder_attention_mask=text["mask"],
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )

    def _hooked(self, layer: str, path: str) -> Any:
        where, _, what = path.partition(":")
        module = self.denoiser.get_submodule(where)

        def keep(value: Tensor) -> None:
            if value.ndim == 3:
                side = int(value.shape[1] ** 0.5)
                value = value.transpose(1, 2).reshape(len(value), -1, side, side)
            self.seen[layer] = value.clone()  # what follows may write into it

        if what == "in":
            return module.register_forward_pre_hook(
                lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        return module.register_forward_hook(
            lambda _, __, output: keep(output[0] if isinstance(output, tuple) else output)
        )

    def _exchanged(self) -> Any:
        """Explicit softmax in every attention, kept where it is wanted: what those who want one map do."""
        before = dict(self.denoiser.attn_processors)
        wanted = {self.places[layer].partition(":")[0] + ".processor": layer for layer in self.maps}
        self.denoiser.set_attn_processor(
            {name: ExplicitSoftmax(self.seen, wanted.get(name, "")) for name in before}
        )
        return before


class ExplicitSoftmax:
    """An attention processor that computes the softmax as a matrix, and keeps it under a name if it has one."""

    def __init__(self, seen: dict[str, Tensor], keep_as: str) -> None:
        self.seen, self.keep_as = seen, keep_as

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        b, n, _width = hidden_states.shape

        def heads(x: Tensor) -> Tensor:
            return x.view(b, x.shape[1], attn.heads, -1).transpose(1, 2)

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(context)), heads(attn.to_v(context))
        scores = q @ k.transpose(-2, -1) * attn.scale
        if attention_mask is not None:
            scores = scores + attention_mask.reshape(b, -1, 1, attention_mask.shape[-1])
        weights = scores.float().softmax(-1).to(v.dtype)
        if self.keep_as:
            self.seen[self.keep_as] = weights
        out = (weights @ v).transpose(1, 2).reshape(b, n, -1)
        return attn.to_out[1](attn.to_out[0](out))
