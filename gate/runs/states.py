"""What techniques learned in a screening, kept in its run: `states.safetensors`, a tensor under `TECHNIQUE/KEY`.

Numpy, which the files of a run are written with, lacks some of torch's types (bfloat16, the float8s). Such a tensor is
kept as the integers of its bits, and its key ends in `:TYPE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from gate.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, NDArray[Any]]

STATES = "states.safetensors"


def packed(state: Mapping[str, Tensor], technique: str) -> State:
    """`Technique.state()` as arrays, bit for bit. Raises PluginError where it is no tensors by name."""
    import torch

    arrays: State = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise PluginError(
                f"The state of {technique} holds a {type(value).__name__} under {key!r}; it must be tensors by name."
            )
        kind = str(value.dtype).removeprefix("torch.")
        plain = value.detach().cpu().contiguous()
        foreign = kind == "bfloat16" or kind.startswith("float8")
        if foreign:
            plain = plain.view(torch.int16 if value.element_size() == 2 else torch.uint8)
        spelled = foreign or _typed(key) is not None
        arrays[f"{key}:{kind}" if spelled else key] = plain.numpy().copy()
    return arrays


def unpacked(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """`packed` the other way round: tensors in memory of their own, on the CPU."""
    import torch

    state: dict[str, Tensor] = {}
    for key, array in arrays.items():
        kind, value = _typed(key), torch.from_numpy(array.copy())
        if kind is None:
            state[key] = value
        else:
            state[key.rpartition(":")[0]] = value if value.dtype == kind else value.view(kind)
    return state


def _typed(key: str) -> Any:
    """The torch type that a key ends in, or None."""
    import torch

    kind = getattr(torch, key.rpartition(":")[2], None) if ":" in key else None
    return kind if isinstance(kind, torch.dtype) else None


def joined(states: Mapping[str, State]) -> State:
    """{technique: its arrays} as one {technique/key: array}."""
    return {f"{name}/{key}": array for name, arrays in states.items() for key, array in arrays.items()}


def parted(arrays: Mapping[str, NDArray[Any]], techniques: Iterable[str]) -> dict[str, State]:
    """`joined` the other way round, for the techniques that have a state.

    Settings and keys may hold slashes: an array belongs to the longest name that it begins with.
    """
    heads = sorted((f"{name}/" for name in techniques), key=len, reverse=True)
    found: dict[str, State] = {}
    for key, array in arrays.items():
        head = next((h for h in heads if key.startswith(h)), "")
        if head:
            found.setdefault(head[:-1], {})[key[len(head) :]] = array
    return found
