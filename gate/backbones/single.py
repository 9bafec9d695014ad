"""A pipeline in one safetensors file, under the keys of its authors' code, read by diffusers' own conversion."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gate.backbones.hub import pipeline_folder, read_index
from gate.backbones.hush import hushed
from gate.backbones.index import part_names
from gate.backbones.parts import part_class, vae_dtype
from gate.backbones.trusted import refuse_extras
from gate.backbones.whole import AGAIN, check_file, check_nulls, check_pickles
from gate.errors import ConfigurationError, UsageError


def load_single_file(
    name: str, file: Path, follows: str | None, revision: str | None, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model_index.json and the parts of one safetensors file.

    follows: the folder or hub id whose configs it has; None asks diffusers to tell from the file's tensors. Raises
    ConfigurationError where the file is cut, is another model's, or lacks a tensor, which it names.
    """
    check_file(name, file)
    folder = pipeline_folder(follows or _inferred(name, file), revision)
    index = read_index(follows or name, folder)
    check_nulls(name, index)
    names = part_names(index)
    for part in names:
        part_class(name, part, index)
        refuse_extras(name, folder / part)
        check_pickles(name, folder / part)
    made = _converted(name, file, folder, index, names)
    parts = {part: getattr(made, part) for part in names}
    parts["scheduler"] = {**made.scheduler.config, "_class_name": type(made.scheduler).__name__}
    for part, value in parts.items():
        if isinstance(value, nn.Module):
            _check_whole(name, value)
            value.to(vae_dtype(folder / part, dtype) if part in ("vae", "vqvae") else dtype)
    return index, parts


def _converted(name: str, file: Path, folder: Path, index: Mapping[str, Any], names: list[str]) -> Any:
    """Diffusers' pipeline of the file. Its tensors keep their dtype here: a cast would fall over one that lacks."""
    import diffusers
    from diffusers.utils import logging as of_diffusers

    kind = str(index.get("_class_name"))
    pipeline: Any = getattr(diffusers, kind, None)
    if not (inspect.isclass(pipeline) and issubclass(pipeline, diffusers.DiffusionPipeline)) or not hasattr(
        pipeline, "from_single_file"
    ):
        raise ConfigurationError(f"{kind} cannot be read from a single file; give its folder.")
    idle = {key: None for key, entry in index.items() if isinstance(entry, list) and key not in names}
    of_diffusers.disable_progress_bar()
    try:
        with hushed():
            return pipeline.from_single_file(str(file), config=str(folder), local_files_only=True, **idle)
    except Exception as error:  # diffusers raises what its conversion happens to meet
        raise _said(name, folder, kind, error) from error


def _said(name: str, folder: Path, kind: str, error: Exception) -> ConfigurationError:
    """What a failed conversion means."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "meta tensor" in first:  # a model that lacks a tensor was moved: which one?
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for value in frame.f_locals.values():
                if isinstance(value, nn.Module):
                    _check_whole(name, value)
    if "appear to be missing in the checkpoint" in first:
        lacking = first.removeprefix("Failed to load ").partition(".")[0]
        return ConfigurationError(
            f"{name} lacks the weights of the {lacking} that a {kind} has (a denoiser alone?); find the complete "
            "checkpoint, or load the pipeline's folder."
        )
    if "expected shape" in first:
        first = first.partition("because ")[2].partition(". If you want")[0]
        return ConfigurationError(
            f"{name} does not fit the configs of {folder.name}: {first}; name those of its own kind with "
            "--pipeline FOLDER|HUB_ID, or fetch the file again."
        )
    return ConfigurationError(f"{name} is no checkpoint of a {kind}: {first}")


def _check_whole(name: str, module: nn.Module) -> None:
    """Raise ConfigurationError naming a tensor that the file did not fill; diffusers leaves it without numbers."""
    empty = [key for key, value in module.state_dict().items() if value.is_meta]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise ConfigurationError(
            f"{name} lacks {empty[0]}{more} of its {type(module).__name__}; {AGAIN}, or name the configs of its own "
            "kind with --pipeline FOLDER|HUB_ID."
        )


def _inferred(name: str, file: Path) -> str:
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    try:
        return str(
            fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"]
        )
    except Exception as error:  # diffusers raises what its guesswork happens to meet
        raise UsageError(
            f"{name} does not say which pipeline it belongs to; name its configs with --pipeline FOLDER|HUB_ID."
        ) from error
