"""The recipe of the tiny pipeline as commands; see card.md for the ones that made the shipped weights.

python -m gate.tiny train-vae | cache-latents | train | export | evaluate | sample | adopt | companions
      [--run FOLDER] ...
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from gate.tiny import WEIGHTS


def parser() -> argparse.ArgumentParser:
    """All subcommands and their options."""
    top = argparse.ArgumentParser(prog="python -m gate.tiny", description=__doc__.splitlines()[0])
    top.add_argument(
        "--run", type=Path, default=Path("tiny-run"), help="folder of checkpoints, cache and logs"
    )
    top.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    commands = top.add_subparsers(dest="command", required=True)
    vae = commands.add_parser("train-vae", help="train the autoencoder (resumes)")
    vae.add_argument("--steps", type=int)
    cache = commands.add_parser("cache-latents", help="render and encode the training scenes")
    cache.add_argument("--scenes", type=int, default=12000)
    train = commands.add_parser("train", help="train denoiser and text encoder (resumes)")
    train.add_argument("--steps", type=int)
    train.add_argument("--batch", type=int)
    train.add_argument("--minutes", type=float, help="save and stop after this long; call again to go on")
    train.add_argument("--bfloat16", action="store_true", help="autocast; faster only where the CPU has AMX")
    export = commands.add_parser("export", help="write the averaged weights as a diffusers pipeline")
    export.add_argument("--to", type=Path, default=WEIGHTS)
    for name in ("evaluate", "sample"):
        command = commands.add_parser(name, help=f"{name} the shipped pipeline")
        command.add_argument("--weights", type=Path, default=WEIGHTS)
        command.add_argument("--to", type=Path, default=Path(__file__).parent)
        if name == "evaluate":
            command.add_argument("--quick", action="store_true", help="a quarter of the scenes")
    adopt = commands.add_parser(
        "adopt", help="take over a folder of gate fit as a companion, in half precision"
    )
    adopt.add_argument("fit", type=Path)
    adopt.add_argument(
        "--over-fitted", type=Path, help="a longer fit of the same, whose last step goes along"
    )
    companions = commands.add_parser("companions", help="measure the companions and enter them in the card")
    companions.add_argument("--to", type=Path, default=Path(__file__).parent)
    losses = commands.add_parser("losses", help="draw the loss curves of a run")
    losses.add_argument("--to", type=Path, default=Path(__file__).parent)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    options = parser().parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    COMMANDS[options.command](options)
    return 0


def _averaged_vae(run: Path) -> Any:
    import torch

    from gate.tiny.models import new_vae
    from gate.tiny.recipe.progress import Ema

    vae = new_vae()
    ema = Ema(vae, 0.0)
    ema.load(torch.load(run / "vae.pt", weights_only=True)["ema"])
    ema.copy_to(vae)
    return vae.eval()


def _train_vae(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.train_vae import VaeRecipe, train_vae

    recipe = VaeRecipe() if options.steps is None else VaeRecipe(steps=options.steps)
    train_vae(recipe, options.run)


def _cache_latents(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.train import cache_latents

    cache_latents(_averaged_vae(options.run), options.scenes, options.run / "latents.pt")


def _train(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.train import Recipe, load_cache, train

    given = {
        name: getattr(options, name) for name in ("steps", "batch") if getattr(options, name) is not None
    }
    stop_at = None if options.minutes is None else time.time() + 60 * options.minutes
    recipe = dataclasses.replace(Recipe(), **given)
    cache = load_cache(options.run / "latents.pt")
    train(recipe, cache, options.run, stop_at=stop_at, bfloat16=options.bfloat16)


def _export(options: argparse.Namespace) -> None:
    import torch

    from gate.tiny.models import quieten_idle_layers
    from gate.tiny.pipeline import export_pipeline, weights_size
    from gate.tiny.recipe.progress import Ema
    from gate.tiny.recipe.train import new_trainee, normalise_latents
    from gate.tiny.tokens import new_tokenizer

    vae = _averaged_vae(options.run)
    cache = torch.load(options.run / "latents.pt", weights_only=True)
    normalise_latents(vae, cache["mean"], cache["std"])
    vae.register_to_config(scaling_factor=1.0)
    model = new_trainee(0)
    ema = Ema(model, 0.0)
    checkpoint = options.run / "train.pt"
    if checkpoint.exists():
        ema.load(torch.load(checkpoint, weights_only=True)["ema"])
    else:
        print("no train.pt in the run: exporting an untrained denoiser", file=sys.stderr)
    ema.copy_to(model)
    quieten_idle_layers(model["unet"])
    export_pipeline(vae, model["unet"], model["text_encoder"], new_tokenizer(), options.to)
    print(f"{options.to}: {weights_size(options.to) / 1e6:.1f} MB", file=sys.stderr)


def _evaluate(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.evaluate import evaluate

    evaluate(options.weights, options.to, quick=options.quick)


def _sample(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.figures import sample_sheet

    sample_sheet(options.weights, options.to / "figures" / "samples.png")


def _adopt(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.shipped import adopt

    print(adopt(options.fit, WEIGHTS, over_fitted=options.over_fitted), file=sys.stderr)


def _companions(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.shipped import measure

    for name, figure in measure(WEIGHTS, options.to).items():
        print(f"{name}  {figure.value:+.3f} [{figure.low:.3f}, {figure.high:.3f}], n = {figure.n}")


def _losses(options: argparse.Namespace) -> None:
    from gate.tiny.recipe.figures import loss_curves

    loss_curves(options.run, options.to / "figures" / "losses.png")


COMMANDS = {
    "train-vae": _train_vae,
    "cache-latents": _cache_latents,
    "train": _train,
    "export": _export,
    "evaluate": _evaluate,
    "sample": _sample,
    "losses": _losses,
    "adopt": _adopt,
    "companions": _companions,
}

if __name__ == "__main__":
    raise SystemExit(main())
