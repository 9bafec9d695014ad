"""The parts of a pipeline as modules, from its folder."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gate.backbones.families import families
from gate.backbones.hub import read_config, variant_of
from gate.backbones.index import part_of
from gate.backbones.recorded.pipeline import pipeline_class
from gate.backbones.trusted import refuse_extras, trusted_class, widened_class
from gate.backbones.whole import check_files, check_vocabulary, load_whole
from gate.errors import ConfigurationError, MissingWeightsError


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
            cls: Any = part_class(name, part, index, widened)
            refuse_extras(name, where)
            if part == "scheduler":
                parts[part] = read_config(name, where / "scheduler_config.json")
                continue
            check_files(name, where)
            if not issubclass(cls, nn.Module):
                check_vocabulary(name, where, cls)
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


def part_class(name: str, part: str, index: Mapping[str, Any], widened: bool = False) -> type[Any]:
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
