"""The two pictures of the model card: what the pipeline paints, and how its losses fell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from gate.tiny.pipeline import load_pipeline
from gate.tiny.scenes import CLASSES, sprites

ROWS, COLUMNS = 5, 8
TILE, TEXT = 128, 26  # px on the sheet
STEPS, GUIDANCE, SEED = 50, 2.0, 7


def sheet_prompts() -> list[str]:
    """40 prompts: two trained objects of each class, eight pairs, two classes, two with backgrounds."""
    by_class = {c: [s.phrase for s in sprites("trained") if s.group == c] for c in CLASSES}
    prompts = [f"a photo of {by_class[c][k]}" for k in (0, 3) for c in CLASSES]
    for k in range(0, 14, 2):
        prompts.append(f"a photo of {by_class[CLASSES[k]][1]} and {by_class[CLASSES[k + 1]][2]}")
    for k in (1, 4, 7):
        prompts.append(f"a photo of {by_class[CLASSES[k]][4]} on a blue background")
    return [*prompts, "a photo of a bird", "a photo of a fruit"][: ROWS * COLUMNS]


@torch.inference_mode()
def sample_sheet(weights: Path, path: Path) -> None:
    """A 5x8 sheet of samples with their prompts: DDIM, 50 steps, guidance 2, fixed seed, nothing picked by
    hand."""
    from diffusers import DDIMScheduler

    pipeline = load_pipeline(weights)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    prompts = sheet_prompts()
    tiles: list[Any] = []
    for start in range(0, len(prompts), COLUMNS):
        some = prompts[start : start + COLUMNS]
        generators = [torch.Generator().manual_seed(SEED * 1000 + start + k) for k in range(len(some))]
        tiles += pipeline(
            some,
            height=64,
            width=64,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
        ).images
    sheet = Image.new("RGB", (COLUMNS * TILE, ROWS * (TILE + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (prompt, tile) in enumerate(zip(prompts, tiles, strict=True)):
        row, column = divmod(number, COLUMNS)
        x, y = column * TILE, row * (TILE + TEXT)
        sheet.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        draw.multiline_text(
            (x + 2, y + TILE + 1), _two_lines(prompt.removeprefix("a photo of ")), fill="black"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _two_lines(text: str, width: int = 21) -> str:
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width + 1)
    return text[:cut] + "\n" + text[cut + 1 :]


def loss_curves(run: Path, path: Path) -> None:
    """The logs of both training loops as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), constrained_layout=True)
    for axis, (name, title) in zip(axes, (("vae", "autoencoder"), ("train", "denoiser")), strict=True):
        rows = [json.loads(line) for line in (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        axis.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1)
        axis.set(title=title, xlabel="step", ylabel="loss", yscale="log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
