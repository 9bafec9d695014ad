"""`gate fit NAME`: fit the small network that a technique needs, on a few images."""

from __future__ import annotations

from typing import Annotated

import typer

from gate.cli.flags import DeviceFlag
from gate.cli.output import DebugOption, QuietOption, flag


def fit(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="What to fit: lora, smooth-lora, controlnet, t2i-adapter, ip-adapter, textual-inversion, cleandift, "
            "info-latent.",
        ),
    ],
    images: Annotated[str | None, flag("Your images; captions as for gate screen.", "", "DIR")] = None,
    captions: Annotated[str | None, flag("captions.csv.", "NAME.txt beside each image", "FILE")] = None,
    data: Annotated[str | None, flag("A named data set instead.", "", "NAME")] = None,
    output: Annotated[str | None, flag("A new folder for the weights.", "", "DIR")] = None,
    backbone: Annotated[str | None, flag("tiny, a hub id, or a folder.", "tiny", "NAME")] = None,
    samples: Annotated[int | None, flag("Images.", "30", "N")] = None,
    held_out: Annotated[float | None, flag("Share of the images to judge by.", "0.2", "X")] = None,
    steps: Annotated[int | None, flag("Steps.", "by the backbone's size", "N")] = None,
    batch_size: Annotated[int | None, flag("Images a step.", "8", "N")] = None,
    rank: Annotated[int | None, flag("Rank of the LoRA.", "64; 2 for small backbones", "N")] = None,
    alpha: Annotated[float | None, flag("Its alpha.", "32; 2 for small backbones", "X")] = None,
    rate: Annotated[float | None, flag("Learning rate of the denoiser.", "1e-4; small 1e-3", "X")] = None,
    text_rate: Annotated[
        float | None, flag("Of the text encoder; 0 leaves it alone.", "5e-5; small 0", "X")
    ] = None,
    control: Annotated[
        str | None, flag("What a ControlNet or T2I-Adapter is shown.", "canny", "NAME")
    ] = None,
    token: Annotated[
        str | None, flag("The word of a textual inversion.", "the folder's name", "WORD")
    ] = None,
    vectors: Annotated[int | None, flag("How many vectors it has.", "4", "N")] = None,
    smoothness: Annotated[float | None, flag("Weight of smooth-lora's penalty.", "1", "X")] = None,
    shared_below: Annotated[
        int | None, flag("Learn under a shared timestep condition below it (E-TSDM: 100).", "off", "T")
    ] = None,
    shared_intervals: Annotated[int | None, flag("Intervals below it.", "5", "N")] = None,
    check_every: Annotated[int | None, flag("Steps between checkpoints.", "50", "N")] = None,
    sheet: Annotated[int | None, flag("Images on the sample sheet.", "4", "N")] = None,
    seed: Annotated[int | None, flag("The seed of everything random.", "0", "N")] = None,
    device: DeviceFlag = None,
    dtype: Annotated[str | None, flag("float32, bfloat16.", "float32", "NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Fit a LoRA, a ControlNet or another small network to your images; screen it as 'lora[weights=DIR]'."""
    given = {k: v for k, v in locals().items() if v is not None and k not in _NOT_SETTINGS}
    from gate.cli.progress import reporting
    from gate.fit import check_inputs, make_fit_config

    config = make_fit_config(given)
    check_inputs(config, resume=resume)
    with reporting(quiet=quiet) as (progress, log):
        log(f"loading {config.backbone} to fit {name}")
        from gate.fit import fit as run_fit
        from gate.fit.report import screen_command

        done = run_fit(config, resume=resume, progress=progress, log=log)
    kept, measure = done.report["kept"], done.report["measure"]
    gain = kept["held_out_gain"]
    typer.echo(
        f"{done.path}: step {kept['step']} of {done.report['steps']}, held-out {measure} removed "
        f"{100 * gain['value']:+.2f} % [{100 * gain['low']:.2f}, {100 * gain['high']:.2f}], n = {gain['n']}\n"
        f"Screen it: {screen_command(config)}"
    )


_NOT_SETTINGS = frozenset({"resume", "quiet", "debug"})
