"""Everything on a backbone that a technique might leave changed: tensors, hooks, processors, attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gate.backbone import Backbone

PRIMITIVE = (bool, int, float, str, bytes, tuple)


@dataclass
class Snapshot:
    """values: attributes by path, as they are; held: copies of parameters and buffers by path."""

    values: dict[str, Any]
    held: dict[str, Tensor]

    @property
    def tensors(self) -> int:
        return len(self.held)

    @staticmethod
    def of(backbone: Backbone) -> Snapshot:
        values: dict[str, Any] = {}
        held: dict[str, Tensor] = {}
        for part, root in vars(backbone).items():
            if isinstance(root, nn.Module):
                for path, module in root.named_modules():
                    _record(f"{part}.{path}".rstrip("."), module, values, held)
        return Snapshot(values, held)

    def differences(self, other: Snapshot) -> list[str]:
        found = [key for key in {**self.held, **other.held} if not _same_tensor(self.held, other.held, key)]
        for key in {**self.values, **other.values}:
            if key not in self.values or key not in other.values:
                found.append(f"{key} ({'left' if key in other.values else 'gone'})")
            elif not _same(self.values[key], other.values[key]):
                found.append(key)
        return found


def _record(path: str, module: nn.Module, values: dict[str, Any], held: dict[str, Tensor]) -> None:
    """Copies of the module's tensors, and its other attributes one level deep, hooks included."""
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            held[f"{path}.{key}"] = tensor.detach().clone()
            values[f"{path}.{key}.requires_grad"] = tensor.requires_grad
    values[f"{path}.class"] = type(module)
    for key, value in vars(module).items():
        if key in ("_parameters", "_buffers"):
            continue
        if isinstance(value, dict):
            values.update({f"{path}.{key}[{inner}]": item for inner, item in value.items()})
        else:
            values[f"{path}.{key}"] = value


def _same_tensor(a: dict[str, Tensor], b: dict[str, Tensor], key: str) -> bool:
    if key not in a or key not in b:
        return False
    x, y = a[key], b[key]
    return x.dtype == y.dtype and x.device == y.device and x.shape == y.shape and bool(torch.equal(x, y))


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, PRIMITIVE) and bool(a == b))
