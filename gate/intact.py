"""Whether what all techniques share is as it was: weights, hooks, tensors, samples, and functions that everybody calls.

A checksum of every tensor and the identity of everything else. What a technique adds where it harms nobody (a cache, a
module that it imported) is not told.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gate.plugins import OUR_PACKAGES

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet

PRIMITIVE = (bool, int, float, str, bytes, tuple)
LIBRARIES = (
    "builtins",
    "torch",
    "torch.nn.functional",
    "torch.linalg",
    "torch.fft",
    "numpy",
    "numpy.linalg",
)
FUNCTIONS = (property, classmethod, staticmethod)  # as they lie in a class
DEPTH = 3  # of the objects that a backbone holds


class Intact:
    """What was there when this was made. samples: with all that is known of them. shared: further tensors by name."""

    def __init__(
        self,
        backbone: Backbone,
        samples: SampleSet | None = None,
        shared: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.backbone, self.samples, self.shared = backbone, samples, dict(shared or {})
        # of a cache that forgets: what is gone from it is no change, and what is in it must be as it was
        self.forgetful = tuple(f"{k}." for k, v in vars(backbone).items() if getattr(v, "forgets", False))
        self.parts, self.weights = _modules(backbone)
        self.tensors = self._tensors()
        self.functions = {id(owner): (owner, _callables(owner)) for owner in _owners(backbone)}
        self.settings = _settings()

    def changes(self) -> list[str]:
        """What is not as it was, by name; empty where all is."""
        parts, weights = _modules(self.backbone)
        now = self._tensors()
        found = [key for key in {**self.weights, **weights} if self.weights.get(key) != weights.get(key)]
        found += [
            key
            for key, value in self.tensors.items()
            if now.get(key) != value and not (key not in now and key.startswith(self.forgetful))
        ]
        for key in {**self.parts, **parts}:
            if key not in self.parts or key not in parts:
                found.append(f"{key} ({'left' if key in parts else 'gone'})")
            elif not _same(self.parts[key], parts[key]):
                found.append(key)
        for owner, before in self.functions.values():
            found += [
                f"{_name(owner)}.{key}" for key, value in before.items() if vars(owner).get(key) is not value
            ]
        settings = _settings()
        return found + [key for key, value in self.settings.items() if settings[key] != value]

    def _tensors(self) -> dict[str, Any]:
        found = {name: _checksum(tensor) for name, tensor in self.shared.items()}
        for part, value in vars(self.backbone).items():
            found.update((path, _checksum(tensor)) for path, tensor in _within(part, value, DEPTH))
        for sample in self.samples or ():
            for what, value in vars(sample).items():
                found[f"the {what} of sample {sample.id}"] = (
                    _checksum(value) if isinstance(value, np.ndarray) else value
                )
        return found


def _modules(backbone: Backbone) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes of every module, one level deep and hooks included; and its parameters and buffers, as checksums."""
    values: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for part, root in vars(backbone).items():
        for path, module in root.named_modules() if isinstance(root, nn.Module) else ():
            head = f"{part}.{path}".rstrip(".")
            values[f"{head}.class"] = type(module)
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    weights[f"{head}.{key}"] = _checksum(tensor)
                    values[f"{head}.{key}.requires_grad"] = tensor.requires_grad
            for key, value in vars(module).items():
                if key in ("_parameters", "_buffers"):
                    continue
                if isinstance(value, dict):
                    values.update({f"{head}.{key}[{inner}]": item for inner, item in value.items()})
                else:
                    values[f"{head}.{key}"] = value
    return values, weights


def _within(path: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors in what a backbone holds beside its modules: a schedule, dropped channels, embeddings that are kept."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping) and depth:
        for key, item in value.items():
            yield from _within(f"{path}[{key}]", item, depth - 1)
    elif depth and (dataclasses.is_dataclass(value) or type(value).__module__.partition(".")[0] == "gate"):
        for key, item in getattr(value, "__dict__", {}).items():
            yield from _within(f"{path}.{key}", item, depth - 1)


def _checksum(values: Tensor | np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Of shape, type, place and bytes."""
    place = str(values.device) if isinstance(values, Tensor) else ""
    data: Any
    if isinstance(values, Tensor):
        data = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        data = np.ascontiguousarray(values)
    return str(values.dtype), tuple(values.shape), place, zlib.crc32(data)


def _owners(backbone: Backbone) -> list[Any]:
    """Modules and classes whose functions a measurement goes through: libraries, ours, and those of the backbone."""
    modules = [sys.modules[name] for name in LIBRARIES if name in sys.modules]
    ours = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in OUR_PACKAGES]
    classes = [
        c for m in ours for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__
    ]
    parts = [root for root in vars(backbone).values() if isinstance(root, nn.Module)]
    kinds = {c for root in parts for module in root.modules() for c in type(module).__mro__}
    return [*modules, *ours, *classes, torch.Tensor, *(kinds - {object})]


def _callables(owner: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(owner).items() if callable(v) or isinstance(v, FUNCTIONS)}


def _name(owner: Any) -> str:
    module = getattr(owner, "__module__", None)
    return f"{module}.{owner.__qualname__}" if isinstance(owner, type) else str(owner.__name__)


def _settings() -> dict[str, Any]:
    """What changes the numbers of whatever is computed next."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "the modes of torch": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "the current directory": os.getcwd(),
    }


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, PRIMITIVE) and bool(a == b))
