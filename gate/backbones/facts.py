"""What a backbone is, from its configs alone: its pipeline, which family serves it and why, its noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gate.backbones.families import find_family
from gate.backbones.hub import pipeline_folder, read_config, read_index, single_file
from gate.backbones.index import part_names, part_of
from gate.backbones.recorded.pipeline import pipeline_class, refuse_conditions, refuse_several, words_of
from gate.errors import ConfigurationError, UsageError
from gate.schedule import NoiseSchedule

HEADS = ("unet", "transformer")


def backbone_facts(name: str, revision: str | None = None) -> dict[str, Any]:
    """Facts of a folder or hub id without its weights, for `gate describe --backbone`.

    family: "" where nothing serves it; why: in words; refused: why it does not load, "" where nothing in its configs
    speaks against it. Raises UsageError, ConfigurationError or MissingWeightsError where there are no configs.
    """
    if single_file(name):
        raise UsageError(
            f"{name} holds weights alone; describe the folder or hub id whose configs it has (--pipeline)."
        )
    folder = pipeline_folder(name, revision)
    index = read_index(name, folder)
    denoiser = part_of(index, *HEADS)[1] or ""
    facts: dict[str, Any] = {"kind": "backbone", "name": name, "pipeline": index.get("_class_name") or ""}
    facts |= {"denoiser": denoiser, "parts": part_names(index)}
    facts |= _served(name, folder, index, denoiser)
    noise, why = _noise(name, folder)
    return {**facts, "refused": facts["refused"] or why, **noise}


def _served(name: str, folder: Path, index: Mapping[str, Any], denoiser: str) -> dict[str, Any]:
    """family, why, takes and refused."""
    pipeline = str(index.get("_class_name"))
    try:
        family = find_family(name, index)
    except ConfigurationError as error:
        return {"family": "", "why": str(error), "takes": [], "refused": str(error)}
    cls = pipeline_class(index) if family.widened else None
    if cls is not None:
        why = f"no family calls a {denoiser} as {pipeline} does, so that pipeline's own call is recorded"
        words = words_of(cls)
        takes = ["text"] if "prompt" in words else ["classes"] if "class_labels" in words else []
    else:
        why = f"the family {family.family} calls a {denoiser}"
        takes = sorted(family.traits)
    try:
        if cls is not None:
            refuse_conditions(name, cls)
            refuse_several(name, index)
        heads = [folder / part / "config.json" for part in HEADS]
        for head in (file for file in heads if file.is_file()):
            family.accepts(name, index, read_config(name, head))
        refused = ""
    except ConfigurationError as error:
        refused = str(error)
    return {"family": family.family, "why": why, "takes": takes, "refused": refused}


def _noise(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    """scheduler, prediction and timesteps, as its scheduler's config says them; and why it is not served, or ""."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}, ""
    config = read_config(name, file)
    facts: dict[str, Any] = {"scheduler": config.get("_class_name") or ""}
    try:
        schedule = NoiseSchedule.from_config(config)
    except ConfigurationError as error:
        return facts, str(error)
    return {**facts, "prediction": schedule.prediction_type, "timesteps": len(schedule)}, ""
