"""diffusers' own pipeline around parts that are loaded already, and what its `__call__` is asked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from gate.backbones.hush import hushed
from gate.backbones.index import part_of
from gate.errors import ConfigurationError

# what a neutral call is told where its signature has the word: no guidance, the prompt as it is, one image
NEUTRAL: Mapping[str, Any] = {
    "guidance_scale": 1.0,
    "true_cfg_scale": 1.0,
    "distilled_guidance_scale": 1.0,
    "clean_caption": False,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "num_frames": 1,
}
GIVEN = frozenset({"self", "prompt", "class_labels", "args", "kwargs"})


def pipeline_class(index: Mapping[str, Any]) -> type[Any] | None:
    """The class that a model_index.json names, where it is a pipeline of diffusers' own; else None."""
    import diffusers

    name = str(index.get("_class_name"))
    found: Any = None if name.startswith("Auto") else getattr(diffusers, name, None)
    if inspect.isclass(found) and issubclass(found, diffusers.DiffusionPipeline):
        return found
    return None


def own_pipeline(name: str, index: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """diffusers' pipeline of a folder. parts: modules and tokenizers, and the scheduler's config.

    What else its constructor takes is null, or what the index says of it.
    """
    import diffusers

    cls = pipeline_class(index)
    if cls is None:
        raise ConfigurationError(f"{name} is a {index.get('_class_name')}, which diffusers has none of.")
    given: dict[str, Any] = {}
    for word, parameter in inspect.signature(cls.__init__).parameters.items():
        said = index.get(word)
        if word == "scheduler":
            scheduler: Any = getattr(diffusers, part_of(index, word)[1] or str(parts[word]["_class_name"]))
            with hushed():
                given[word] = scheduler.from_config(dict(parts[word]))
        elif word in parts:
            given[word] = parts[word]
        elif word in index and not isinstance(said, (list, tuple)):
            given[word] = said
        elif parameter.default is inspect.Parameter.empty and word != "self":
            given[word] = None
    try:
        with hushed():
            made = cls(**given)
    except Exception as error:  # a stranger's constructor asks its parts for what they may not have
        raise ConfigurationError(
            f"{cls.__name__} cannot be built from the parts of {name}: {error}"
        ) from error
    made.set_progress_bar_config(disable=True)
    return made


def words_of(cls: type[Any]) -> Mapping[str, inspect.Parameter]:
    """What a pipeline's call takes, by name."""
    call: Any = cls.__call__
    return inspect.signature(call).parameters


def refuse_conditions(name: str, cls: type[Any]) -> None:
    """Raise ConfigurationError where a pipeline's call wants more than a prompt or a class."""
    wanted = [w for w, p in words_of(cls).items() if p.default is p.empty and w not in GIVEN]
    if wanted:
        raise ConfigurationError(
            f"{name} is a {cls.__name__}, whose call wants {wanted[0]} besides a prompt; gate conditions on text or a "
            "class alone, so load the text-to-image pipeline of the same model."
        )


def call_options(pipeline: Any, text: str, steps: int, size: int | None, **changes: Any) -> dict[str, Any]:
    """The arguments of one neutral call.

    text: the prompt, or the number of a class. size: pixels a side, or None for its own.
    """
    known = words_of(type(pipeline))
    options = {**NEUTRAL, **changes}
    options |= {"num_inference_steps": steps, "height": size, "width": size}
    options |= {"original_size": (size, size)} if size else {}
    options |= {"prompt": text} if "prompt" in known else {}
    options |= {"class_labels": [int(text or 0)]} if "class_labels" in known else {}
    return {
        k: v for k, v in options.items() if k in known and (v is not None or k not in ("height", "width"))
    }
