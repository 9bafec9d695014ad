"""Between images and latents: a VAE of whatever kind with its scaling, or pixels where there is none."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gate.machine import one_fits


class Codec(abc.ABC):
    """The half of a pipeline that encodes and decodes. vae: None where latents are pixels."""

    vae: Any = None
    device: torch.device

    @abc.abstractmethod
    def _awake(self, *parts: str) -> AbstractContextManager[None]:
        """For a while, these parts are on the device."""

    @property
    def factor(self) -> int:
        """Pixels a side of one latent position: 1 where latents are pixels."""
        if self.vae is None:
            return 1
        ratio = getattr(self.vae, "spatial_compression_ratio", None)
        return int(ratio or 2 ** (len(self.vae.config.block_out_channels) - 1))

    def encode(self, images: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled() and images.requires_grad
        with self._awake("vae"), torch.set_grad_enabled(wanted), one_fits("encoding one image by the VAE"):
            return torch.cat([self._encode_one(image[None]) for image in images])

    def _encode_one(self, image: Tensor) -> Tensor:
        """One at a time: an image's latent then has the same bits in every batch, and on CPUs it is no slower."""
        if self.vae is None:
            return (image * 2 - 1).to(self.device, torch.float32)
        posterior = self.vae.encode(self._framed((image * 2 - 1).to(self.device, self.vae.dtype)))
        if hasattr(posterior, "latent_dist"):
            mean: Tensor = posterior.latent_dist.mean
        else:
            mean = posterior.latents if hasattr(posterior, "latents") else posterior.latent
        return self.normalise((mean[:, :, 0] if mean.ndim == 5 else mean).float())

    def decode(self, x0: Tensor) -> Tensor:
        if self.vae is None:
            return (x0.float() / 2 + 0.5).clamp(0, 1)
        with self._awake("vae"), torch.no_grad(), one_fits("decoding one image by the VAE"):
            latents = (self._framed(self.denormalise(x[None].float()).to(self.vae.dtype)) for x in x0)
            images = torch.cat([self.vae.decode(z).sample for z in latents])
        return (images.reshape(len(x0), 3, *images.shape[-2:]).float() / 2 + 0.5).clamp(0, 1)

    def _framed(self, x: Tensor) -> Tensor:
        """A video VAE takes one frame: (1, c, h, w) -> (1, c, 1, h, w)."""
        return x[:, :, None] if "temperal_downsample" in self.vae.config else x

    def normalise(self, z: Tensor) -> Tensor:
        """The VAE's latent as the denoiser knows it, by the VAE's own config."""
        config = self.vae.config
        if getattr(config, "latents_mean", None) is not None:
            mean, std = self._statistics(z)
            return (z - mean) / std * float(getattr(config, "scaling_factor", None) or 1.0)
        scale, shift = self._scaling
        return (z - shift) * scale

    def denormalise(self, x0: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        config = self.vae.config
        if getattr(config, "latents_mean", None) is not None:
            mean, std = self._statistics(x0)
            return x0 * std / float(getattr(config, "scaling_factor", None) or 1.0) + mean
        scale, shift = self._scaling
        return x0 / scale + shift

    @property
    def _scaling(self) -> tuple[float, float]:
        config = self.vae.config
        return float(getattr(config, "scaling_factor", None) or 1.0), float(
            getattr(config, "shift_factor", None) or 0.0
        )

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (
            torch.tensor(v, dtype=torch.float64).to(like) for v in (config.latents_mean, config.latents_std)
        )
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
