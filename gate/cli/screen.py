"""`gate screen`: the main job. Every field of ScreenConfig is a flag; flags given override --config."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gate.cli.failures import hush
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
from gate.cli.output import DebugOption, Format, QuietOption, flag
from gate.errors import ConfigurationError

if TYPE_CHECKING:
    from gate.screening import Screening


def screen(
    techniques: Annotated[
        str | None, flag("Names, wildcards, NAME[setting=value], a+b, !excluded.", "all", "LIST")
    ] = None,
    backbone: BackboneFlag = None,
    revision: RevisionFlag = None,
    pipeline: PipelineFlag = None,
    image_size: ImageSizeFlag = None,
    data: Annotated[str | None, flag("A named data set.", "scenes-held-out", "NAME")] = None,
    images: Annotated[str | None, flag("Your own images instead of --data.", "", "DIR")] = None,
    labels: Annotated[
        str | None, flag("labels.csv; by default the subfolders of --images.", "", "FILE")
    ] = None,
    captions: CaptionsFlag = None,
    masks: Annotated[str | None, flag("A folder of masks, parallel to --images.", "", "DIR")] = None,
    samples: Annotated[int | None, flag("Images, 8 or more.", "64", "N")] = None,
    timesteps: Annotated[
        str | None, flag("Noise levels.", "at 5 and 30 % of the schedule: 50,300 of 1000", "LIST")
    ] = None,
    alpha_bar: Annotated[str | None, flag("Noise levels as alpha_bar, instead.", "", "LIST")] = None,
    sigma: Annotated[str | None, flag("Noise levels as sigma, instead.", "", "LIST")] = None,
    seeds: Annotated[int | None, flag("Noises per image and timestep.", "1", "N")] = None,
    layers: Annotated[str | None, flag("Layers; see gate list layers.", "paper", "LIST")] = None,
    metrics: Annotated[str | None, flag("Names, or all; see gate list metrics.", "standard", "LIST")] = None,
    probes: Annotated[str | None, flag("Names, or all; see gate list probes.", "standard", "LIST")] = None,
    folds: Annotated[int | None, flag("Folds of the probes.", "4", "N")] = None,
    image_samples: Annotated[int | None, flag("Images to reconstruct; 0 for none.", "4", "N")] = None,
    strength: Annotated[float | None, flag("Strength of the reconstruction, in (0, 1].", "0.7", "X")] = None,
    image_steps: Annotated[int | None, flag("Steps of the reconstruction.", "5", "N")] = None,
    resamples: Annotated[int | None, flag("Bootstrap resamples, 200 or more.", "2000", "N")] = None,
    seed: Annotated[int | None, flag("The seed of everything random.", "0", "N")] = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    offload: OffloadFlag = None,
    batch_size: BatchSizeFlag = None,
    workers: Annotated[
        str | None, flag("Processes; auto is one per core where that pays.", "auto", "N")
    ] = None,
    technique_timeout: Annotated[
        float | None,
        flag(
            "Seconds after which a technique is stopped.", "20 times what it should take, 600 at least", "S"
        ),
    ] = None,
    output: Annotated[str | None, flag("A new run directory.", "runs/DATE-TIME", "RUN")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file of settings; flags override it.", metavar="FILE")
    ] = None,
    where: Annotated[
        bool,
        typer.Option(
            "--where", help="Screen timesteps and layers for one technique instead; see --timesteps."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plan and cost; measure nothing.")] = False,
    format: Annotated[
        Format | None, typer.Option(help="How to print on stdout. [default: table]", show_default=False)
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Rank techniques by how much of vanilla's content shift they remove."""
    given = {k: v for k, v in locals().items() if v is not None and k not in _NOT_SETTINGS}
    from gate.cli.progress import reporting
    from gate.screening import screen as run_screening
    from gate.screening.config import make_config, read_settings

    read = read_settings(config) if config is not None else {}
    shown = _how(read, format)
    quiet = quiet or _switch(read, "quiet")
    where = where or _switch(read, "where")
    dry_run = dry_run or _switch(read, "dry_run")
    settings = make_config({**read, **given})
    if dry_run:
        from gate.cli.plan import print_plan

        print_plan(settings, shown)
        return
    if where:
        from gate.cli.where import print_where
        from gate.screening.where import where as screen_places

        with reporting(quiet=quiet) as (progress, log):
            found = screen_places(settings, progress=progress, log=log)
        print_where(found, shown)
        return
    with reporting(quiet=quiet) as (progress, log), printing_what_is_complete(shown):
        done = run_screening(settings, progress=progress, log=log)
    finish(done, shown)


_NOT_SETTINGS = frozenset({"config", "where", "dry_run", "format", "quiet", "debug"})


def _how(read: dict[str, Any], given: Format | None) -> Format:
    """The format of the flag, else of the file, which is taken out of it."""
    from gate.errors import UsageError

    asked = read.pop("format", Format.table.value)
    try:
        return given or Format(asked)
    except ValueError as error:
        known = ", ".join(f.value for f in Format)
        raise UsageError(f"Setting 'format' is wrong: choose one of {known}, got {asked!r}.") from error


def _switch(read: dict[str, Any], name: str) -> bool:
    """A flag that is true or false in the file, taken out of it."""
    from gate.errors import UsageError

    value = read.pop(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"Setting {name!r} is wrong: choose true or false, got {value!r}.")
    return value


@contextlib.contextmanager
def printing_what_is_complete(format: Format) -> Iterator[None]:
    """Where only the figures were interrupted, the ranking is printed all the same."""
    from gate.cli.rank import print_results
    from gate.screening import Interrupted

    try:
        yield
    except Interrupted as stop:
        if stop.screening is not None:
            print_results(stop.screening.results, stop.run, format)
        raise


def finish(done: Screening, format: Format) -> None:
    """Print the ranking; exit with 7 where a technique failed. A stdout that is full loses nothing but the printing."""
    from gate.cli.rank import print_results

    try:
        print_results(done.results, done.path, format)
    except OSError as error:
        hush(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise ConfigurationError(
                f"stdout cannot be written ({error.strerror}); the run is complete: gate rank {done.path}"
            ) from error
    if done.exit_code:
        raise typer.Exit(done.exit_code)
