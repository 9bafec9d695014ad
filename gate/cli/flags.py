"""Flags that several commands have, worded once: what is screened is extracted with the same words."""

from __future__ import annotations

from typing import Annotated

import typer

from gate.cli.output import flag

BackboneFlag = Annotated[
    str | None, flag("tiny, a hub id, a diffusers pipeline's folder, a safetensors file.", "tiny", "NAME")
]
RevisionFlag = Annotated[str | None, flag("Branch, tag or commit of a hub id.", "", "NAME")]
PipelineFlag = Annotated[
    str | None, flag("Whose configs a single file follows; read off the file by default.", "", "NAME")
]
ImageSizeFlag = Annotated[int | None, flag("Pixels a side; the backbone's own by default.", "", "N")]
CaptionsFlag = Annotated[str | None, flag("captions.csv; by default NAME.txt beside each image.", "", "FILE")]
DeviceFlag = Annotated[str | None, flag("auto, cpu, cuda, mps.", "auto", "NAME")]
DtypeFlag = Annotated[str | None, flag("auto, float32, float16, bfloat16.", "auto", "NAME")]
OffloadFlag = Annotated[
    bool | None,
    typer.Option("--offload", help="Keep parts in main memory until they are called. [default: False]"),
]
BatchSizeFlag = Annotated[str | None, flag("auto, or a number.", "auto", "N")]
