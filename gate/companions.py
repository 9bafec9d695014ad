"""Fitted networks that ship beside the embedded backbone: what a technique uses on it where nothing else is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gate.errors import MissingWeightsError

if TYPE_CHECKING:
    from gate.backbone import Backbone

FOLDER = Path("companions")  # beside the embedded backbone's weights


def companion(backbone: Backbone, name: str, *, fit: str) -> str:
    """The folder of tiny's own companion `name`; "" for every other backbone.

    fit: the command that fits one. Raises MissingWeightsError, with that command, where tiny has none of that name.
    """
    if backbone.name != "tiny":
        return ""
    folder = backbone.source.parent / FOLDER / name
    if not folder.is_dir():
        raise MissingWeightsError(f"There is no {name} for tiny; fit one: {fit}")
    return str(folder)
