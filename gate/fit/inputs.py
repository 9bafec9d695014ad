"""What a fit needs is looked for before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from gate.backbones.hub import check_name
from gate.data import find_data
from gate.data.sidecars import check_folder
from gate.errors import UsageError
from gate.fit.config import FitConfig
from gate.fit.trainer import find_trainer


def check_inputs(config: FitConfig, *, resume: bool = False) -> None:
    """Refuse names and paths that lead nowhere. Raises UsageError."""
    find_trainer(config.name)
    check_name(config.backbone)
    if config.data is not None:
        find_data(config.data)
    check_folder(config.images, captions=config.captions)
    folder = Path(config.output)
    if not resume and folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UsageError(f"{folder} exists already; add --resume to go on, or choose another folder.")
