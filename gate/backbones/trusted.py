"""What a folder of weights may ask for: classes of a closed list, never code of its own.

The files of a model are data of a stranger. They name the classes that read them, so those are looked up here, by name
from diffusers and transformers; an Auto class is none of them, because it runs whatever file its folder names.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gate.errors import ConfigurationError

NEVER = "gate never runs code that comes with a model"
CLASSES: Mapping[str, frozenset[str]] = {
    "diffusers": frozenset(
        {
            *("AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "VQModel"),
            *("AutoencoderKLFlux2", "AutoencoderKLQwenImage", "AutoencoderKLWan"),
        }
    ),
    "transformers": frozenset(
        {
            *("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "MT5EncoderModel"),
            *("UMT5EncoderModel", "BertModel", "Gemma2Model", "Gemma2ForCausalLM"),
            *("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", "Qwen3Model", "Qwen3ForCausalLM"),
            *("Mistral3ForConditionalGeneration", "CLIPTokenizer", "CLIPTokenizerFast"),
            *("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast"),
            *("BertTokenizer", "BertTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast"),
            *("Qwen2Tokenizer", "Qwen2TokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"),
            *("PreTrainedTokenizerFast", "TokenizersBackend"),
        }
    ),
    "kolors": frozenset({"ChatGLMModel", "ChatGLMTokenizer"}),  # diffusers.pipelines.kolors
}
PROCESSORS = ("PixtralProcessor", "Qwen2VLProcessor", "Qwen2_5_VLProcessor")  # only their words are read


def trusted_class(name: str, part: str, library: str, cls: str, further: frozenset[str]) -> type[Any]:
    """The class of a pipeline's part. Raises ConfigurationError where the closed list does not hold it.

    further: what the installed families take besides CLASSES, as "library.Class". Any scheduler of diffusers is one.
    """
    import diffusers

    if part.startswith("tokenizer") and cls in PROCESSORS:
        library, cls = "transformers", "PreTrainedTokenizerFast"
    known = further | {f"{home}.{one}" for home, every in CLASSES.items() for one in every}
    scheduler = part == "scheduler" and library == "diffusers"
    if f"{library}.{cls}" not in known and not scheduler:
        raise ConfigurationError(
            f"{name} wants {library}.{cls} for its {part}, which is not among the classes that gate loads; {NEVER}, "
            "and docs/backbones.md lists the pipelines that it reads."
        )
    module: Any = (
        getattr(diffusers.pipelines, library, None)
        if library == "kolors"
        else importlib.import_module(library)
    )
    found: Any = getattr(module, cls, None)
    if found is None or (scheduler and not issubclass(found, diffusers.SchedulerMixin)):
        raise ConfigurationError(
            f"{name} needs {library}.{cls} for its {part}, which is not in diffusers {diffusers.__version__} or "
            "transformers; upgrade them."
        )
    made: type[Any] = found
    return made


def widened_class(
    name: str, part: str, library: str, cls: str, pipeline: type[Any] | None = None
) -> type[Any]:
    """The class of a part of a recorded pipeline: any model, tokenizer or scheduler of diffusers and transformers.

    By name from a package's own top level, or from a package of diffusers' pipelines, that of `pipeline` among them
    (PRX brings its encoder along), never an Auto class. Raises ConfigurationError for any other.
    """
    import diffusers
    import transformers

    if part.startswith("tokenizer") and cls in PROCESSORS:
        cls = "PreTrainedTokenizerFast"
    packages = {"diffusers": diffusers, "transformers": transformers}
    package: Any = packages.get(library) or (
        library.isidentifier() and getattr(diffusers.pipelines, library, None)
    )
    kinds = (
        *(diffusers.ModelMixin, diffusers.SchedulerMixin),
        *(transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase),
    )
    auto = cls.startswith("Auto") and not cls.startswith("Autoencoder")
    found: Any = None if auto else getattr(package, cls, None)
    if found is None and pipeline is not None and not auto and library in packages:
        found = getattr(importlib.import_module(pipeline.__module__.rpartition(".")[0]), cls, None)
    if not (
        isinstance(found, type) and issubclass(found, kinds) and found.__module__.split(".")[0] in packages
    ):
        raise ConfigurationError(
            f"{name} wants {library}.{cls} for its {part}, which is no model, tokenizer or scheduler of diffusers or "
            f"transformers that gate loads; {NEVER}. Upgrade the two if the class is newer than they are."
        )
    made: type[Any] = found
    return made


def refuse_extras(name: str, folder: Path) -> None:
    """Raise ConfigurationError where a model's configs would make transformers fetch or import something else.

    An adapter beside the weights names the base model to load; an attention or experts kernel with a slash is a
    repository whose code is run.
    """
    if (folder / "adapter_config.json").is_file():
        raise ConfigurationError(
            f"{name} brings an adapter in {folder.name}/adapter_config.json, which gate does not load; merge it first."
        )
    for file in sorted(folder.glob("*.json")):
        if file.stat().st_size > 1 << 20:  # a vocabulary
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # whoever needs it says what is wrong with it
            continue
        for key, value in _entries(config):
            if "_implementation" in key and isinstance(value, str) and "/" in value:
                raise ConfigurationError(
                    f"{name} wants the kernel {value!r} ({key} in {folder.name}/{file.name}); {NEVER}."
                )


def own_code(folder: Path) -> list[str]:
    """What a folder's configs name in `auto_map`: modules of its own or of another repository."""
    found: set[str] = set()
    for file in sorted(folder.glob("*config.json")):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for key, value in _entries(config):
            found |= {value} if key.startswith("auto_map") and isinstance(value, str) else set()
    return sorted(found)


def _entries(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every leaf, with the keys above it in front: `auto_map.AutoModel`."""
    if isinstance(config, (dict, list)):
        for inner, value in config.items() if isinstance(config, dict) else enumerate(config):
            yield from _entries(value, f"{key}.{inner}" if key else str(inner))
    else:
        yield key, config
