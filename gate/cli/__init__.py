"""The command line: one file per subcommand. Importing it loads neither torch nor diffusers, nor numpy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from gate.cli.cache import cache
from gate.cli.check import check
from gate.cli.describe import describe
from gate.cli.doctor import doctor
from gate.cli.download import download
from gate.cli.extract import extract
from gate.cli.failures import end_as_interrupted, explain, guarded, say
from gate.cli.fit import fit
from gate.cli.list import list_
from gate.cli.plot import plot
from gate.cli.rank import rank
from gate.cli.resume import resume
from gate.cli.schema import schema
from gate.cli.screen import screen
from gate.cli.study import study
from gate.cli.task import task
from gate.cli.verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="gate",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from gate import __version__

        typer.echo(f"gate {__version__}")
        raise typer.Exit


@app.callback()
def _gate(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Which generation techniques pull diffusion features back to the image they came from.

    Start with: gate screen --techniques all
    """


_COMMANDS: dict[str, Callable[..., Any]] = {
    "screen": screen,
    "resume": resume,
    "rank": rank,
    "verify": verify,
    "extract": extract,
    "plot": plot,
    "list": list_,
    "describe": describe,
    "check": check,
    "fit": fit,
    "task": task,
    "study": study,
    "download": download,
    "cache": cache,
    "schema": schema,
    "doctor": doctor,
}
_SHORT = {
    "screen": "Rank techniques: the main job.",
    "resume": "Finish an interrupted screening; make what a run lacks.",
    "rank": "Print the ranking of a run again.",
    "verify": "Check a run's files, and measure a tenth of it again.",
    "extract": "Extract features of many images with the winners.",
    "plot": "Draw the figures of a run.",
    "list": "List techniques, probes, metrics, tasks, layers, backbones, data.",
    "describe": "Show all about a technique, probe, metric or task.",
    "check": "Test a technique against the contract.",
    "task": "Train heads in full on a technique's features.",
    "study": "Train heads for every technique: what foretold them?",
    "fit": "Fit a LoRA or a ControlNet to your images.",
    "download": "Fetch a model into the hub's cache.",
    "cache": "Show or clear the latents that are kept.",
    "schema": "Print the JSON Schema of results.json.",
    "doctor": "Look at this installation, and say what to do.",
}
for _name, _command in _COMMANDS.items():
    app.command(_name, short_help=_SHORT[_name])(guarded(_command))


def main() -> None:
    """Run the command line; exits with the code that the outcome deserves."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    end_as_interrupted()
    try:
        app(prog_name="gate")
    except OSError as error:  # of what is printed before a command runs, as --help
        message, code = explain(error)
        say(message)
        sys.exit(code)
