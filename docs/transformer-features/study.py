"""Which features of a transformer to take: block outputs or what follows AdaLN. A PixArt of 5 M parameters, trained on
tiny's scenes in tiny's latents, then measured layer by layer on objects that it never saw.

python docs/transformer-features/study.py train --run RUN --minutes 60 | measure --run RUN
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

import gate
from gate.backbones.massive import THRESHOLD
from gate.data import load_data
from gate.measure import confusion_error, confusion_margins
from gate.ranking.statistics import paired_interval
from gate.tiny import WEIGHTS
from gate.tiny.recipe.progress import Ema, Schedule, train_steps
from gate.tiny.recipe.train import Recipe, cache_latents, draw_batch, load_cache
from gate.tiny.tokens import new_tokenizer

WIDTH, HEADS, DEPTH, TEXT = 192, 4, 8, 128
RECIPE = Recipe(steps=6000, rate=1e-3, warm_up=300)


def modules() -> torch.nn.ModuleDict:
    """A PixArt over 8x8 tokens, and the T5 encoder that is trained with it."""
    from diffusers import PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(RECIPE.seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        num_layers=DEPTH,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT,
        sample_size=16,
        out_channels=4,
        use_additional_conditions=False,
    )
    for block in transformer.transformer_blocks:  # as DiT: every block begins as the identity
        block.scale_shift_table.data.normal_(0, 0.02)
    for layer in (transformer.adaln_single.linear, transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    tokenizer = new_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT,
        d_kv=32,
        d_ff=2 * TEXT,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    return torch.nn.ModuleDict({"transformer": transformer, "text_encoder": T5EncoderModel(config)})


def train(run: Path, minutes: float) -> None:
    """Go on from RUN's checkpoint; at the end, RUN/pipeline is a PixArt pipeline that gate loads."""
    from gate.tiny.models import new_scheduler

    run.mkdir(parents=True, exist_ok=True)
    stored = run / "latents.pt"
    tiny: Any = gate.load_backbone("tiny", device="cpu")
    if not stored.exists():
        cache_latents(tiny.vae, 8000, stored)
    cache, end = load_cache(stored), new_tokenizer().eos_token_id
    model, alpha_bar = modules(), new_scheduler().alphas_cumprod
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=RECIPE.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )

    def loss_of(step: int) -> torch.Tensor:
        batch = draw_batch(cache, RECIPE, step)
        a = alpha_bar[batch.t].view(-1, 1, 1, 1)
        before = (batch.tokens == end).cumsum(1) - (batch.tokens == end).long()
        mask = (before == 0).long()
        text = model["text_encoder"](batch.tokens, attention_mask=mask)[0]
        predicted = model["transformer"](
            a.sqrt() * batch.x0 + (1 - a).sqrt() * batch.eps,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=batch.t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return F.mse_loss(predicted, batch.eps)

    ema = Ema(model, RECIPE.ema)
    schedule = Schedule(RECIPE.rate, RECIPE.warm_up, RECIPE.steps, RECIPE.decay)
    stop_at = time.time() + 60 * minutes
    train_steps(model, optimiser, loss_of, schedule, ema, run, "train", stop_at=stop_at, save_every=250)
    export(model, run / "pipeline", tiny)


def export(model: torch.nn.ModuleDict, folder: Path, tiny: Any) -> None:
    """A folder in diffusers' format. The VAE's latents are of unit variance per channel on average, as trained."""
    stored = torch.load(folder.parent / "latents.pt", weights_only=True)
    shutil.copytree(WEIGHTS / "scheduler", folder / "scheduler", dirs_exist_ok=True)
    tiny.vae.register_to_config(
        latents_mean=stored["mean"].tolist(), latents_std=stored["std"].tolist(), scaling_factor=1.0
    )
    tiny.vae.save_pretrained(folder / "vae")
    new_tokenizer().save_pretrained(folder / "tokenizer")
    for name, module in model.items():
        module.save_pretrained(folder / name)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    index = {
        "_class_name": "PixArtAlphaPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "scheduler": ["diffusers", scheduler],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def measure(run: Path, samples: int) -> None:
    """Per layer: how massive its largest channel is, how alike two images' features are, and gate's own screening."""
    folder, step = run / "pipeline", torch.load(run / "train.pt", weights_only=True)["step"]
    backbone = gate.load_backbone(str(folder), device="cpu")
    scenes = load_data("scenes-held-out", n=samples, size=backbone.image_size)
    rows = []
    for kind in ("", ".adaln"):
        layers = [f"block{i}{kind}" for i in range(DEPTH)]
        for t in (50, 300):
            with torch.inference_mode(), gate.capture(backbone.denoiser, layers) as seen:
                backbone.predict(backbone.batch(scenes.samples).request(t, 0))
            for layer in layers:
                size = seen[layer].abs().mean((0, 2, 3))
                alike = F.cosine_similarity(seen[layer], seen[layer].roll(1, 0), dim=1).mean((1, 2))
                rows.append(
                    {
                        "layer": layer,
                        "t": t,
                        "largest_over_median_channel": float(size.max() / size.median()),
                        "cosine_with_another_image": float(alike.mean()),
                    }
                )
    screened: dict[str, Any] = {}
    scores = []
    depths = sorted({int(DEPTH * p / 5) for p in (1, 2, 3, 4)})
    for name, layers in (
        ("block outputs", [f"block{i}" for i in depths]),
        ("post-AdaLN", [f"block{i}.adaln" for i in depths]),
    ):
        done = gate.screen(
            techniques=["prompt", "shuffled-prompt", "noise-ensemble"],
            backbone=str(folder),
            layers=layers,
            samples=samples,
            image_samples=0,
            output=str(run / f"screen-{name.replace(' ', '-')}-{int(time.time())}"),
        )
        scores.append(load_file(Path(done.path) / "scores.safetensors"))
        screened[name] = {"layers": layers, "dropped": done.results["dropped_channels"]}
        screened[name] |= {"vanilla": done.results["vanilla"], "ranking": done.results["ranking"]}
    screened["post-AdaLN minus block outputs, vanilla"] = compared(*scores)
    results = {"n": samples, "steps": step, "massive": THRESHOLD, "layers": rows, "screened": screened}
    file = Path(__file__).with_name("results.json")
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[float]]:
    """Vanilla's shifts and probe figures through one set of layers minus through another: value, low, high (95 %,
    paired over samples). Shifts: lower is better; figures (mIoU, balanced accuracy): higher."""
    made = {}
    for key in before:
        kind, _, name = key.partition("/")
        sides = [after[key][0], before[key][0]]  # vanilla
        n = sides[0].shape[-1] if kind == "shift" else sides[0].shape[2] if kind == "probe" else 0
        if kind == "shift" and not name.endswith("@own"):  # the same for vanilla
            means = [side.mean(axis=tuple(range(side.ndim - 1))) for side in sides]
            difference = means[0] - means[1]
            interval = paired_interval(lambda c, d=difference: c @ d / c.sum(-1), n, seed=0)
        elif kind == "probe":
            figure: Any = "miou" if name == "pixel-linear" else "balanced-accuracy"
            margins = [confusion_margins(side.sum(axis=1)) for side in sides]  # (t, n, 3, k)

            def gain(c: Any, margins: Any = margins, figure: Any = figure) -> Any:
                errors = [
                    np.mean([confusion_error(np.tensordot(c, at_t, 1), figure) for at_t in side], axis=0)
                    for side in margins
                ]
                return errors[1] - errors[0]

            interval = paired_interval(gain, n, seed=0)
        else:
            continue
        made[name] = [interval.value, interval.low, interval.high]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["train", "measure"])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "train":
        train(options.run, options.minutes)
    else:
        measure(options.run, options.samples)


if __name__ == "__main__":
    main()
