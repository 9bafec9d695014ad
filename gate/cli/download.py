"""`gate download NAME`: fetch a model into the hub's cache, so that nothing else needs a network."""

from __future__ import annotations

from typing import Annotated

import typer

from gate.cli.output import DebugOption


def download(
    name: Annotated[
        str, typer.Argument(metavar="HUB_ID", help="OWNER/NAME of a backbone, LoRA, ControlNet ...")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", metavar="NAME")] = None,
    debug: DebugOption = False,
) -> None:
    """Fetch what a backbone needs: configs, vocabularies and safetensors in full precision. Prints the folder.

    An interrupted download goes on where it stopped.
    """
    from gate.backbones.hub import INDEX, fetch, is_hub_id, missing_files, read_index
    from gate.errors import MissingWeightsError, UsageError

    if not is_hub_id(name):
        raise UsageError(
            f"{name!r} is no hub id of the form OWNER/NAME; what is on this machine needs no download."
        )
    folder = fetch(name, revision)
    if (folder / INDEX).is_file():
        from gate.backbones.index import part_names

        index = read_index(name, folder)
        missing = missing_files(folder, index, part_names(index))
        if missing:
            raise MissingWeightsError(
                f"The hub has no {missing[0]} of {name} as safetensors; look for a converted one."
            )
    typer.echo(str(folder))
