"""Train the tiny autoencoder on random crops of scenes; resumable, constant rate and then a decay to the end.

Loss: L1 + 0.5 L1 of the image gradients (keeps edges) + `kl` times the KL to N(0, 1), images in [-1, 1].
The autoencoder sees trained objects only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gate.tiny.models import new_vae
from gate.tiny.recipe.progress import Ema, Schedule, train_steps
from gate.tiny.scenes import render


@dataclass(frozen=True)
class VaeRecipe:
    """steps of `batch` crops of `crop` px; the pool holds `scenes` rendered scenes. kl: weight of the KL
    term."""

    steps: int = 3000
    batch: int = 16
    crop: int = 32
    scenes: int = 4000
    rate: float = 2e-3
    warm_up: int = 100
    decay: float = 0.3
    kl: float = 1e-5
    ema: float = 0.995
    seed: int = 1


def scene_pool(seed: int, count: int) -> torch.Tensor:
    """`count` training scenes, (count, 3, 64, 64) uint8."""
    images = np.stack([render(seed, index).image for index in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def crop_batch(pool: torch.Tensor, recipe: VaeRecipe, step: int) -> torch.Tensor:
    """The crops of one step, (batch, 3, crop, crop) float32 in [-1, 1]; a function of (seed, step) alone."""
    rng = np.random.default_rng([recipe.seed, 11, step])
    rows = rng.integers(len(pool), size=recipe.batch)
    corners = rng.integers(0, pool.shape[-1] - recipe.crop + 1, size=(recipe.batch, 2))
    side = recipe.crop
    crops = [pool[n, :, y : y + side, x : x + side] for n, (y, x) in zip(rows, corners, strict=True)]
    return torch.stack(crops).float() / 127.5 - 1


def vae_loss(vae: Any, images: torch.Tensor, kl_weight: float, generator: torch.Generator) -> torch.Tensor:
    """Scalar loss of one batch, images (b, 3, h, w) in [-1, 1]."""
    posterior = vae.encode(images).latent_dist
    latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
    out = vae.decode(latent).sample.float()
    pixels = F.l1_loss(out, images)
    edges = F.l1_loss(out.diff(dim=-1), images.diff(dim=-1)) + F.l1_loss(
        out.diff(dim=-2), images.diff(dim=-2)
    )
    return pixels + 0.5 * edges + kl_weight * posterior.kl().float().mean() / latent[0].numel() * 4


def train_vae(recipe: VaeRecipe, run: Path, *, stop_at: float | None = None) -> Any:
    """Train, or resume what `run` holds, to the end of the recipe; returns the averaged model.

    stop_at: seconds since the epoch; the loop saves and returns there. A later call goes on from that step.
    """
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    vae = new_vae().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = Ema(vae, recipe.ema)
    schedule = Schedule(recipe.rate, recipe.warm_up, recipe.steps, recipe.decay)
    pool = scene_pool(recipe.seed, recipe.scenes)
    (run / "vae.json").write_text(json.dumps(asdict(recipe), indent=1))

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        with torch.autocast(
            "cpu", torch.bfloat16
        ):  # with channels_last twice as fast as float32 on two cores
            return vae_loss(vae, crop_batch(pool, recipe, step), recipe.kl, generator)

    train_steps(vae, optimiser, loss_of, schedule, ema, run, "vae", stop_at=stop_at, save_every=500)
    return vae.eval()


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio per image in dB, a and b (n, 3, h, w) in [-1, 1]; returns (n,)."""
    return -10 * torch.log10(((a - b) / 2).square().flatten(1).mean(1))
