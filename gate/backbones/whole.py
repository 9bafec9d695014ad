"""Whether a part's files are whole and are the part's: what is wrong is said with the file and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gate.backbones.hub import GGUF, PICKLES, read_config
from gate.backbones.index import part_of
from gate.errors import ConfigurationError, GateError
from gate.machine import is_out_of_memory

AGAIN = "fetch that file again"
READ = {"vae": "images become latents", "scheduler": "noise levels are read"}
CONVERT = (
    "Convert them once, where you trust them: DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False)"
    ".save_pretrained(NEW_FOLDER), and load NEW_FOLDER."
)


def check_nulls(name: str, index: Mapping[str, Any]) -> None:
    """Raise ConfigurationError where a pipeline says that it goes without a part that it needs.

    Of text encoders and tokenizers, Stable Diffusion 3 does without its third one, and SDXL's refiner has the second
    alone.
    """
    for part, entry in index.items():
        null = isinstance(entry, (list, tuple)) and not any(entry)
        if null and part in READ:
            raise ConfigurationError(
                f"{name} has no {part} (null in its model_index.json), and {READ[part]} by it; take that folder and "
                "its entry from the pipeline that it was made from."
            )
        kind = next((k for k in ("text_encoder", "tokenizer") if part in (k, f"{k}_2", f"{k}_3")), "")
        if not kind or not null or part == f"{kind}_3" or (part == kind and part_of(index, f"{kind}_2")[1]):
            continue
        raise ConfigurationError(
            f"{name} has no {part} (null in its model_index.json), and prompts are read by it; take that folder and "
            "its entry from the pipeline that it was made from."
        )


def check_pickles(name: str, folder: Path) -> None:
    """Raise ConfigurationError where a part's folder holds pickled or quantised weights and no safetensors."""
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    if any(file.suffix == ".safetensors" for file in files):
        return
    quantised = [file for file in files if file.suffix == ".gguf"]
    if quantised:
        raise ConfigurationError(
            f"The {folder.name} of {name} is quantised ({folder.name}/{quantised[0].name}), which gate does not "
            f"screen. {GGUF}"
        )
    pickled = [file for file in files if file.suffix in PICKLES]
    if pickled:
        raise ConfigurationError(
            f"The {folder.name} of {name} is pickled ({folder.name}/{pickled[0].name}), and pickles are never loaded. "
            f"{CONVERT}"
        )


def check_files(name: str, folder: Path) -> None:
    """Raise ConfigurationError where a part's JSON is none, or one of its safetensors is cut or foreign."""
    for config in sorted(folder.glob("*.json")):
        read_config(name, config)
    for file in sorted(folder.glob("*.safetensors")):
        check_file(f"{folder.name}/{file.name} of {name}", file)


def check_file(what: str, file: Path) -> None:
    """Raise ConfigurationError where a safetensors file is cut, or is something else under that name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ConfigurationError(f"{what} is cut short, or is no safetensors ({error}); {AGAIN}.") from error


def load_whole(name: str, folder: Path, load: Callable[[], tuple[Any, Mapping[str, Any]]]) -> Any:
    """The module of a part's folder, with every tensor from its files. Raises ConfigurationError naming a tensor.

    load: diffusers' or transformers' own, with what it found missing. Libraries fill a missing tensor with random
    numbers and a line in a log.
    """
    try:
        made, found = load()
    except (GateError, OSError, ImportError):
        raise
    except (
        Exception
    ) as error:  # a config that is not meant for the class: the two libraries raise what they meet
        if is_out_of_memory(error):
            raise
        raise ConfigurationError(
            f"The weights in {folder.name} of {name} do not fit its config: {matter(error)}; {AGAIN}, or the "
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


def check_vocabulary(name: str, folder: Path, cls: Any) -> None:
    """Raise ConfigurationError where a tokenizer's folder has none of the files that its class reads words from.

    transformers makes a tokenizer without words of it.
    """
    files = sorted(set(getattr(cls, "vocab_files_names", {}).values()))
    if files and not any((folder / file).is_file() for file in files):
        raise ConfigurationError(
            f"The {folder.name} of {name} has no vocabulary (none of {', '.join(files)}); fetch that folder again."
        )


def matter(error: Exception) -> str:
    """The line of an error that says what is wrong: the first that speaks of a shape, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "shape" in line or "size" in line), lines[0]).rstrip(".:")
