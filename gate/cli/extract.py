"""`gate extract`: features of many images into a store. Every field of ExtractConfig is a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gate.cli.flags import (
    BackboneFlag,
    BatchSizeFlag,
    CaptionsFlag,
    DeviceFlag,
    DtypeFlag,
    ImageSizeFlag,
    OffloadFlag,
    PipelineFlag,
    RevisionFlag,
)
from gate.cli.output import DebugOption, QuietOption, flag
from gate.names import harmless


def extract(
    run: Annotated[
        str | None,
        typer.Option("--from", help="A finished run: its winners, layers, timestep.", metavar="RUN"),
    ] = None,
    top: Annotated[int | None, flag("So many of the run's winners, best first.", "1", "N")] = None,
    technique: Annotated[
        str | None, flag("Techniques by name, as in gate screen.", "the run's winner, else vanilla", "LIST")
    ] = None,
    head: Annotated[
        str | None, flag("A trained amalgamation instead: DIR/heads/*.amalgam.safetensors.", "", "FILE")
    ] = None,
    images: Annotated[str | None, flag("The images.", "the run's own", "DIR")] = None,
    data: Annotated[str | None, flag("A named data set instead.", "", "NAME")] = None,
    captions: CaptionsFlag = None,
    samples: Annotated[int | None, flag("Images of a named data set.", "the run's, else 32", "N")] = None,
    output: Annotated[str | None, flag("The store's directory.", "", "STORE")] = None,
    layers: Annotated[
        str | None, flag("Layers; see gate list layers.", "the run's, else paper", "LIST")
    ] = None,
    timestep: Annotated[
        int | None, flag("Noise level.", "the run's, else at 5 % of the schedule", "T")
    ] = None,
    seed: Annotated[int | None, flag("Noise seed.", "the run's, else 0", "N")] = None,
    backbone: BackboneFlag = None,
    revision: RevisionFlag = None,
    pipeline: PipelineFlag = None,
    image_size: ImageSizeFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    offload: OffloadFlag = None,
    precision: Annotated[
        str | None,
        flag("exact: the screen's numbers; fast: half precision, within tolerances.", "exact", "NAME"),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile", help="With fast: torch.compile, where it pays. [default: False]"),
    ] = None,
    batch_size: BatchSizeFlag = None,
    workers: Annotated[str | None, flag("Processes; auto is timed.", "auto", "N")] = None,
    layout: Annotated[
        str | None, flag("safetensors, npy (a file per image), webdataset (tar).", "safetensors", "NAME")
    ] = None,
    pool: Annotated[
        int | None, flag("Average-pool to N x N; 0 keeps the native resolution.", "0", "N")
    ] = None,
    resize: Annotated[int | None, flag("Resize to N x N; 0 keeps the native resolution.", "0", "N")] = None,
    vector: Annotated[
        bool | None, typer.Option("--vector", help="The mean over all positions, (n, c). [default: False]")
    ] = None,
    normalise: Annotated[
        bool | None, typer.Option("--normalise", help="Length 1 over channels. [default: False]")
    ] = None,
    project: Annotated[int | None, flag("Project channels to N; 0 keeps them.", "0", "N")] = None,
    projection: Annotated[
        str | None, flag("pca, fitted on the first images, or random.", "pca", "NAME")
    ] = None,
    save_dtype: Annotated[str | None, flag("float32, float16, bfloat16.", "float32", "NAME")] = None,
    per_shard: Annotated[str | None, flag("Images in a shard.", "auto, about 64 MB", "N")] = None,
    no_latent_cache: Annotated[
        bool | None,
        typer.Option("--no-latent-cache", help="Encode anew, and keep no latents. [default: False]"),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what would be run, why, and what it costs; write nothing.")
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(help="Read a store again and compare its checksums.", metavar="STORE")
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Extract features with a run's winners, or any technique, into a store of shards."""
    given = {k: v for k, v in locals().items() if v is not None and k not in _NOT_SETTINGS}
    if verify is not None:
        _verify(verify, given, quiet)
        return
    if "technique" in given:
        given["techniques"] = given.pop("technique")
    if given.pop("no_latent_cache", False):
        given["cache"] = False
    from gate.cli.progress import reporting
    from gate.extraction.config import make_config

    config = make_config(given)
    from gate.extraction import job

    with reporting(quiet=quiet) as (progress, log):
        if explain:
            told = job.explain(config, log=log)
        else:
            done = job.extract(config, progress=progress, log=log)
    if explain:
        typer.echo(harmless_lines(told))
        return
    for name, store in done.stores.items():
        typer.echo(f"{harmless(str(store))}  {done.images} images, {harmless(name)}")
    if not quiet:
        first = next(iter(done.stores.values()))
        typer.echo(f"Read it with: gate.load_features({str(first)!r})", err=True)


_NOT_SETTINGS = frozenset({"explain", "verify", "quiet", "debug"})


def harmless_lines(text: str) -> str:
    return "\n".join(harmless(line) for line in text.splitlines())


def _verify(store: Path, given: dict[str, Any], quiet: bool) -> None:
    from gate.errors import DamagedError, UsageError
    from gate.extraction.verify import verify_store

    if given:
        raise UsageError(
            f"--verify STORE reads a store and takes no --{next(iter(given)).replace('_', '-')}."
        )
    from gate.cli.progress import reporting

    with reporting(quiet=quiet) as (progress, _):
        found = verify_store(store, progress)
    for line in found:
        typer.echo(harmless(line), err=True)
    if found:
        raise DamagedError(
            f"{store} is damaged in {len(found)} place{'s' if len(found) > 1 else ''}, named above."
        )
    typer.echo(f"{harmless(str(store))} is whole.")
