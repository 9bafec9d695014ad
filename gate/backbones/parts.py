"""The parts of a pipeline as modules: from a folder, or from one safetensors file and the configs it follows."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gate.backbones.families import families
from gate.backbones.hub import pipeline_folder, read_config, read_index, variant_of
from gate.backbones.index import part_names, part_of
from gate.backbones.recorded.pipeline import pipeline_class
from gate.backbones.trusted import refuse_extras, trusted_class, widened_class
from gate.backbones.whole import check_files, check_nulls, check_pickles, load_whole
from gate.errors import ConfigurationError, MissingWeightsError, UsageError


def load_parts(
    name: str,
    folder: Path,
    index: Mapping[str, Any],
    names: Sequence[str],
    dtype: torch.dtype,
    *,
    widened: bool = False,
) -> dict[str, Any]:
    """{part: module, tokenizer, or the scheduler's config}. The VAE is in float32 where half precision breaks it.

    widened: whether parts may be any class of diffusers and transformers, not those of the closed list alone.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    parts: dict[str, Any] = {}
    try:
        for part in names:
            where = folder / part
            cls: Any = _class_of(name, part, index, widened)
            refuse_extras(name, where)
            if part == "scheduler":
                parts[part] = read_config(name, where / "scheduler_config.json")
                continue
            check_files(name, where)
            if not issubclass(cls, nn.Module):
                parts[part] = cls.from_pretrained(where, local_files_only=True, trust_remote_code=False)
                continue
            kind = (
                "torch_dtype" if hasattr(cls, "load_config") else "dtype"
            )  # diffusers' word, transformers' word
            options: dict[str, Any] = {kind: vae_dtype(where, dtype) if part in ("vae", "vqvae") else dtype}
            if variant_of(where):
                options["variant"] = variant_of(where)
            if kind == "dtype":
                options["trust_remote_code"] = False
            options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
            parts[part] = load_whole(name, where, functools.partial(cls.from_pretrained, where, **options))
    except ImportError as error:
        first = next(line for line in str(error).splitlines() if line.strip())
        raise ConfigurationError(f"{name} needs a package that is not installed: {first.strip()}") from error
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise MissingWeightsError(f"{name} is not complete in its folder: {first}") from error
    return parts


def _class_of(name: str, part: str, index: Mapping[str, Any], widened: bool = False) -> type[Any]:
    """A part's class, which must be one of the closed list or of a family's own, or of the two packages at all."""
    if widened:
        return widened_class(name, part, *part_of(index, part), pipeline_class(index))
    every = families()
    own = frozenset(f"diffusers.{denoiser}" for family in every for denoiser in family.denoisers)
    return trusted_class(name, part, *part_of(index, part), own.union(*(family.parts for family in every)))


def vae_dtype(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """float32 for a VAE that overflows in float16 (SDXL's): its config says force_upcast, or says nothing."""
    if dtype != torch.float16:
        return dtype
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return torch.float32 if config.get("force_upcast", True) else dtype


def load_single_file(
    name: str, file: Path, follows: str | None, revision: str | None, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model_index.json and the parts of one safetensors file, by diffusers' own conversion.

    follows: the folder or hub id whose configs it has; None asks diffusers to tell from the file's tensors.
    """
    import diffusers

    folder = pipeline_folder(follows or _inferred(name, file), revision)
    index = read_index(follows or name, folder)
    check_nulls(name, index)
    pipeline: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if not (inspect.isclass(pipeline) and issubclass(pipeline, diffusers.DiffusionPipeline)) or not hasattr(
        pipeline, "from_single_file"
    ):
        raise ConfigurationError(
            f"{index.get('_class_name')} cannot be read from a single file; give its folder."
        )
    names = part_names(index)
    for part in names:
        _class_of(name, part, index)
        refuse_extras(name, folder / part)
        check_pickles(name, folder / part)
    idle = {key: None for key, entry in index.items() if isinstance(entry, list) and key not in names}
    try:
        made = pipeline.from_single_file(
            str(file), config=str(folder), torch_dtype=dtype, local_files_only=True, **idle
        )
    except Exception as error:  # diffusers raises what its conversion happens to meet
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"{name} is no checkpoint of a {index.get('_class_name')}: {first}"
        ) from error
    parts = {part: getattr(made, part) for part in names}
    parts["scheduler"] = {**made.scheduler.config, "_class_name": type(made.scheduler).__name__}
    if "vae" in parts:
        parts["vae"].to(vae_dtype(folder / "vae", dtype))
    return index, parts


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
