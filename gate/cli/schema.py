"""`gate schema`: what results.json holds, as JSON Schema."""

from __future__ import annotations

import typer

from gate.cli.output import DebugOption, to_json


def schema(debug: DebugOption = False) -> None:
    """Print the JSON Schema of results.json."""
    from gate.runs.schema import Results

    typer.echo(to_json(Results.model_json_schema()))
