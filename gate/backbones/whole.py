"""Whether a part's files are whole and are the part's: what is wrong is said with the file and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gate.backbones.hub import PICKLES, read_config
from gate.backbones.index import part_of
from gate.errors import ConfigurationError

AGAIN = "fetch that file again"
CONVERT = (
    "Convert them once, where you trust them: DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False)"
    ".save_pretrained(NEW_FOLDER), and load NEW_FOLDER."
)


def check_nulls(name: str, index: Mapping[str, Any]) -> None:
    """Raise ConfigurationError where a pipeline says that it goes without a text encoder or tokenizer that it needs.

    Stable Diffusion 3 does without its third one, and SDXL's refiner has the second alone.
    """
    for part, entry in index.items():
        null = isinstance(entry, (list, tuple)) and not any(entry)
        kind = next((k for k in ("text_encoder", "tokenizer") if part in (k, f"{k}_2", f"{k}_3")), "")
        if not kind or not null or part == f"{kind}_3" or (part == kind and part_of(index, f"{kind}_2")[1]):
            continue
        raise ConfigurationError(
            f"{name} has no {part} (null in its model_index.json), and prompts are read by it; take that folder and "
            "its entry from the pipeline that it was made from."
        )


def check_pickles(name: str, folder: Path) -> None:
    """Raise ConfigurationError where a part's folder holds pickled weights and no safetensors."""
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    pickled = [file for file in files if file.suffix in PICKLES]
    if pickled and not any(file.suffix == ".safetensors" for file in files):
        raise ConfigurationError(
            f"The {folder.name} of {name} is pickled ({folder.name}/{pickled[0].name}), and pickles are never loaded. "
            f"{CONVERT}"
        )


def check_files(name: str, folder: Path) -> None:
    """Raise ConfigurationError where a part's config is no JSON object, or one of its safetensors is cut or foreign."""
    from safetensors import SafetensorError, safe_open

    for config in sorted(folder.glob("config.json")):
        read_config(name, config)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(
                f"{folder.name}/{file.name} of {name} is cut short, or is no safetensors ({error}); {AGAIN}."
            ) from error


def load_whole(name: str, folder: Path, load: Callable[[], tuple[Any, Mapping[str, Any]]]) -> Any:
    """The module of a part's folder, with every tensor from its files. Raises ConfigurationError naming a tensor.

    load: diffusers' or transformers' own, with what it found missing. Libraries fill a missing tensor with random
    numbers and a line in a log.
    """
    try:
        made, found = load()
    except (ValueError, RuntimeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        first = next((line for line in lines if "shape" in line or "size" in line), lines[0])
        raise ConfigurationError(
            f"The weights in {folder.name} of {name} do not fit its config: {first.rstrip('.')}; {AGAIN}, or the "
            "config.json beside it."
        ) from error
    wrong = [str(key[0]) for key in found.get("mismatched_keys") or ()]
    if wrong:
        raise ConfigurationError(
            f"The weights in {folder.name} of {name} do not fit its config: {wrong[0]} has another shape; {AGAIN}, "
            "or the config.json beside it."
        )
    missing = sorted(set(found.get("missing_keys") or ()))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigurationError(f"The weights in {folder.name} of {name} lack {missing[0]}{more}; {AGAIN}.")
    return made
