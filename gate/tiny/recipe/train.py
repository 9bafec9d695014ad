"""Train the tiny denoiser and its text encoder together, on cached latents; resumable.

Loss: plain eps-MSE over timesteps drawn in proportion to SNR^-1/2 within bounds (the weight of Yu et al. 2023,
"debiased" eps-MSE, as a density), stratified over the batch; captions dropped for 12 % of the samples. Every
batch is a function of (seed, step), so a resumed run equals an uninterrupted one."""

from __future__ import annotations

import functools
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gate.tiny.models import initialise_unet, new_scheduler, new_text_encoder, new_unet
from gate.tiny.recipe.progress import Ema, Schedule, save_whole, train_steps
from gate.tiny.scenes import Scene, render, write_caption
from gate.tiny.tokens import new_tokenizer, tokenise

TRAIN_SEED = 1  # the series of training scenes; evaluation uses others
FAN_IN = 256  # weights of at most so many inputs train at the full rate
CAPTIONS = 4  # caption variants kept per scene


@dataclass(frozen=True)
class Recipe:
    """steps of `batch` latents. decay: share of the steps over which the rate falls."""

    steps: int = 8500
    batch: int = 32
    rate: float = 1.2e-3
    warm_up: int = 150
    decay: float = 0.35
    drop: float = 0.12
    ema: float = 0.998
    seed: int = 1


@dataclass(frozen=True)
class LatentCache:
    """latents: (n, 4, 16, 16) float32 of about unit variance; tokens: (n, CAPTIONS, TOKENS) int64; empty:
    (TOKENS,)."""

    latents: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor


def training_captions(scene: Scene) -> list[str]:
    """CAPTIONS ways to say what the scene shows; one in five names classes only."""
    rng = np.random.default_rng([scene.seed, scene.index, 3])
    return [write_caption(scene.objects, scene.background, rng, class_only=0.2) for _ in range(CAPTIONS)]


def _render_row(index: int) -> tuple[Any, list[str]]:
    scene = render(TRAIN_SEED, index, objects="trained")
    return scene.image, training_captions(scene)


@torch.no_grad()
def cache_latents(vae: Any, count: int, path: Path, *, workers: int = 2) -> None:
    """Render, encode (posterior mean) and store `count` training scenes, each channel normalised."""
    vae = vae.eval().to(memory_format=torch.channels_last)
    with ProcessPoolExecutor(workers) as pool:
        rows = list(pool.map(_render_row, range(count), chunksize=200))
    means = []
    for start in range(0, count, 64):
        block = np.stack([image for image, _ in rows[start : start + 64]])
        images = torch.from_numpy(block).permute(0, 3, 1, 2).float() / 127.5 - 1
        means.append(vae.encode(images.to(memory_format=torch.channels_last)).latent_dist.mean.contiguous())
    latents = torch.cat(means)
    tokenizer = new_tokenizer()
    tokens = tokenise(tokenizer, [text for _, texts in rows for text in texts]).view(count, CAPTIONS, -1)
    state = {
        "latents": (latents - _per_channel(latents.mean((0, 2, 3)))) / _per_channel(latents.std((0, 2, 3))),
        "tokens": tokens,
        "empty": tokenise(tokenizer, [""])[0],
        "mean": latents.mean((0, 2, 3)),
        "std": latents.std((0, 2, 3)),
    }
    save_whole(state, path)


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)


@torch.no_grad()
def normalise_latents(vae: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold z -> (z - mean) / std, mean and std (4,), into the two 1x1 convolutions around the latent, in
    place.

    Each latent channel then has mean 0 and variance 1 over the training scenes, and what is decoded stays the
    same. Without this the channels differ ten-fold in scale, and noise wipes the small ones out at small
    timesteps."""
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[channels:] -= 2 * std.log()  # the log-variances
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std.view(1, -1, 1, 1)


def load_cache(path: Path) -> LatentCache:
    """What `cache_latents` stored."""
    state = torch.load(path, weights_only=True)
    return LatentCache(state["latents"].float(), state["tokens"], state["empty"])


@dataclass(frozen=True)
class Batch:
    """x0, eps: (b, 4, 16, 16); t: (b,) int64; tokens: (b, TOKENS) int64."""

    x0: torch.Tensor
    eps: torch.Tensor
    t: torch.Tensor
    tokens: torch.Tensor


@functools.cache
def _timestep_shares() -> torch.Tensor:
    """(1000,) float64, cumulative: density clamp(SNR^-1/2, 0.5, 1.5). Where the layout and the shapes are decided
    (t > 400), uniform timesteps with the plain eps-MSE barely train at all."""
    alpha_bar = new_scheduler().alphas_cumprod.double()
    density = ((1 - alpha_bar) / alpha_bar).sqrt().clamp(0.5, 1.5)
    return (density / density.sum()).cumsum(0)


def draw_batch(cache: LatentCache, recipe: Recipe, step: int) -> Batch:
    """The batch of one step, a function of (seed, step) alone."""
    g = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    b = recipe.batch
    rows = torch.randint(len(cache.latents), (b,), generator=g)
    variant = torch.randint(cache.tokens.shape[1], (b,), generator=g)
    tokens = cache.tokens[rows, variant]
    dropped = torch.rand(b, generator=g) < recipe.drop
    tokens = torch.where(dropped[:, None], cache.empty, tokens)
    strata = (torch.arange(b) + torch.rand(b, generator=g)) / b
    t = torch.searchsorted(_timestep_shares(), strata.double()).clamp(max=999)
    x0 = cache.latents[rows]
    return Batch(x0, torch.randn(x0.shape, generator=g), t, tokens)


def denoiser_loss(unet: Any, text_encoder: Any, batch: Batch, alpha_bar: torch.Tensor) -> torch.Tensor:
    """eps-MSE of one batch; alpha_bar: (1000,)."""
    abar = alpha_bar[batch.t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * batch.x0 + (1 - abar).sqrt() * batch.eps
    context = text_encoder(batch.tokens).last_hidden_state
    x_t = x_t.to(memory_format=torch.channels_last)
    eps_hat = unet(x_t, batch.t, context, return_dict=False)[0]
    return F.mse_loss(eps_hat.float(), batch.eps)


def rate_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Parameters by their share of the learning rate: min(1, FAN_IN / fan in), as muP has it for Adam (Yang et al.
    2022).

    Adam moves every weight by about the rate, however small its gradient. At one rate for all, the wide deep layers
    change their output faster than the layers above can follow, and those learn to ignore them.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        share = min(1.0, FAN_IN / parameter[0].numel()) if parameter.ndim > 1 else 1.0
        groups.setdefault(share, []).append(parameter)
    return [{"params": group, "share": share} for share, group in groups.items()]


def new_trainee(seed: int) -> torch.nn.ModuleDict:
    """Fresh UNet and text encoder."""
    torch.manual_seed(seed)
    unet = new_unet()
    initialise_unet(unet)
    unet = unet.to(memory_format=torch.channels_last)
    return torch.nn.ModuleDict({"unet": unet, "text_encoder": new_text_encoder(new_tokenizer())})


def train(
    recipe: Recipe,
    cache: LatentCache,
    run: Path,
    *,
    stop_at: float | None = None,
    save_every: int = 250,
    bfloat16: bool = False,
) -> torch.nn.ModuleDict:
    """Train, or resume what `run` holds, to the end of the recipe; returns the averaged modules.

    stop_at: seconds since the epoch; the loop saves and returns there. A later call goes on from that step.
    """
    run.mkdir(parents=True, exist_ok=True)
    model = new_trainee(recipe.seed)
    optimiser = torch.optim.AdamW(
        rate_groups(model), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    ema = Ema(model, recipe.ema)
    schedule = Schedule(recipe.rate, recipe.warm_up, recipe.steps, recipe.decay)
    alpha_bar = new_scheduler().alphas_cumprod
    (run / "train.json").write_text(json.dumps(asdict(recipe), indent=1))

    def loss_of(step: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            batch = draw_batch(cache, recipe, step)
            return denoiser_loss(model["unet"], model["text_encoder"], batch, alpha_bar)

    train_steps(
        model, optimiser, loss_of, schedule, ema, run, "train", stop_at=stop_at, save_every=save_every
    )
    return model.eval()
