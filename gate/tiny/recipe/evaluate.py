"""Measure the shipped pipeline on scenes that training never saw; writes evaluation.json and the figures.

Scenes of trained objects come from another seed than training's; scenes of held-out objects show objects that
no training saw. Every figure has n and a 95 % interval: Wilson for shares, the normal approximation for
means."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gate.tiny.pipeline import load_pipeline, weights_size
from gate.tiny.recipe.judge import SEED, Figure, as_images, encode_images, encode_text, mean_of, scenes, share
from gate.tiny.recipe.train_vae import psnr
from gate.tiny.scenes import CLASSES, Split, class_prompts

NOISES = 4
TABLE_START, TABLE_END = "<!-- figures -->", "<!-- end of figures -->"


def eps_errors(
    pipeline: Any, x0: torch.Tensor, contexts: torch.Tensor, t: int, noises: int = NOISES
) -> torch.Tensor:
    """Mean squared eps error of each image under each of its contexts, over the same noises.

    x0: (n, 4, 16, 16); contexts: (n, k, TOKENS, WIDTH). Returns (n, k).
    """
    abar = pipeline.scheduler.alphas_cumprod[t]
    k = contexts.shape[1]
    rows = []
    for number, (image, context) in enumerate(zip(x0, contexts, strict=True)):
        generator = torch.Generator().manual_seed(SEED * 100_003 + number)
        eps = torch.randn((noises, *image.shape), generator=generator)
        x_t = abar.sqrt() * image + (1 - abar).sqrt() * eps
        repeated = context.repeat_interleave(noises, dim=0)
        eps_hat = pipeline.unet(x_t.repeat(k, 1, 1, 1), t, repeated).sample
        errors = (eps_hat - eps.repeat(k, 1, 1, 1)).square().flatten(1).mean(1)
        rows.append(errors.view(k, noises).mean(1))
    return torch.stack(rows)


def vae_quality(pipeline: Any, n: int = 256) -> Figure:
    """PSNR in dB of posterior-mean reconstructions of held-out scenes."""
    batch = scenes("held-out", n)
    values = []
    for start in range(0, n, 32):
        images = as_images(batch[start : start + 32])
        out = pipeline.vae.decode(pipeline.vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        values.append(psnr(out, images))
    return mean_of(torch.cat(values).numpy(), "dB", 25.0)


def caption_matters(pipeline: Any, n: int = 200, t: int = 500) -> Figure:
    """Share of one-object scenes whose own caption gives a lower eps error than another scene's caption."""
    batch = scenes("trained", n, count=1, offset=10_000)
    others = [
        next(s for s in batch[i + 1 :] + batch[:i] if s.objects[0].sprite != batch[i].objects[0].sprite)
        for i in range(n)
    ]
    own, other = ([s.caption for s in part] for part in (batch, others))
    contexts = torch.stack([encode_text(pipeline, own), encode_text(pipeline, other)], dim=1)
    errors = eps_errors(pipeline, encode_images(pipeline, batch), contexts, t)
    return share(int((errors[:, 0] < errors[:, 1]).sum()), n, "share of scenes", 0.9)


def zero_shot(
    pipeline: Any, objects: Split = "trained", n: int = 140, timesteps: tuple[int, ...] = (500,)
) -> Figure:
    """Accuracy of the class prompt with the least eps error, one-object scenes; chance is 1 / 14."""
    batch = scenes(objects, n, count=1, offset=20_000)
    contexts = encode_text(pipeline, list(class_prompts())).expand(n, -1, -1, -1)
    x0 = encode_images(pipeline, batch)
    errors = sum(eps_errors(pipeline, x0, contexts, t) for t in timesteps)
    assert isinstance(errors, torch.Tensor)
    guessed = errors.argmin(1).numpy()
    hits = int((guessed == np.array([s.label for s in batch])).sum())
    return share(hits, n, "accuracy", 4 / len(CLASSES) if objects == "trained" else None)


def speed(pipeline: Any, calls: int = 40) -> Figure:
    """ms per image of one UNet forward, batch 16, float32, on torch's present threads, memory as a screening has it."""
    from gate.machine import keep_freed_memory

    keep_freed_memory()
    x_t, context = torch.randn(16, 4, 16, 16), encode_text(pipeline, [""] * 16)
    times = []
    for call in range(calls + 3):
        started = time.perf_counter()
        pipeline.unet(x_t, 50, context)
        if call >= 3:
            times.append((time.perf_counter() - started) / 16 * 1000)
    return replace(mean_of(np.array(times), "ms per image"), required=5.0, at_most=True)


def fingerprint(weights: Path) -> str:
    """SHA-256 of the stored denoiser, so that figures and weights can be matched."""
    return hashlib.sha256((weights / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


def write_table(figures: dict[str, Figure], card: Path) -> None:
    """Replace what stands between the card's two marks by the measured figures."""
    rows = ["| figure | value [95 % interval] | n | asked |", "|---|---|---|---|"]
    for name, f in figures.items():
        asked = f"{f.demand}: {'holds' if f.holds else '**missed**'}" if f.demand else ""
        rows.append(f"| `{name}` | {f.value:.3f} [{f.low:.3f}, {f.high:.3f}] {f.unit} | {f.n} | {asked} |")
    if not card.exists():
        return
    head, _, rest = card.read_text(encoding="utf-8").partition(TABLE_START)
    _, _, tail = rest.partition(TABLE_END)
    text = "\n".join([head + TABLE_START, "", *rows, "", TABLE_END]) + tail
    card.write_text(text, encoding="utf-8")


@torch.inference_mode()
def evaluate(weights: Path, to: Path, *, quick: bool = False) -> dict[str, Figure]:
    """All figures and pictures; writes `to`/evaluation.json, the table in `to`/card.md and the sample sheet.

    quick: about a quarter of the scenes, so wider intervals; each figure's n says how many.
    """
    from gate.tiny.recipe.features import linear_probes
    from gate.tiny.recipe.figures import sample_sheet

    pipeline = load_pipeline(weights)
    started = time.time()
    fast = speed(pipeline)  # first: what comes later leaves thread pools behind
    figures = {
        "vae_psnr_held_out": vae_quality(pipeline, 64 if quick else 256),
        "own_caption_beats_other_t500": caption_matters(pipeline, 100 if quick else 200),
        "zero_shot_trained": zero_shot(pipeline, n=56 if quick else 140),
        "zero_shot_held_out": zero_shot(pipeline, "held-out", n=28 if quick else 140),
        **(linear_probes(pipeline, 250, 125, 60) if quick else linear_probes(pipeline)),
        "unet_forward": fast,
    }
    report = {
        "schema_version": 1,
        "seed": SEED,
        "quick": quick,
        "unet_sha256": fingerprint(weights),
        "device": f"CPU, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
        "weights_bytes": weights_size(weights),
        "chance": 1 / len(CLASSES),
        "seconds": round(time.time() - started, 1),
        "figures": {name: asdict(f) | {"holds": f.holds} for name, f in figures.items()},
    }
    (to / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_table(figures, to / "card.md")
    sample_sheet(weights, to / "figures" / "samples.png")
    for name, f in figures.items():
        asked = f"  ({f.demand}: {'holds' if f.holds else 'MISSED'})" if f.demand else ""
        print(f"{name}  {f.value:.3f} [{f.low:.3f}, {f.high:.3f}] {f.unit}, n = {f.n}{asked}")
    return figures
