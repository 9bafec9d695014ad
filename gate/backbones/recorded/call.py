"""The arguments of a denoiser's call as data: a tree of values with holes where the latent and the time belong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gate.errors import ConfigurationError

Path = tuple[Any, ...]  # the keys that lead from (args, kwargs) to a value
PLAIN = (Tensor, str, int, float, bool, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Hole:
    """Where a call's latent or time was."""

    what: str


@dataclass(frozen=True, eq=False)
class Told:
    """What a denoiser is told of one prompt besides latent and time: positional and named arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, value) of every value in nested tuples, lists and mappings."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, (tuple, list)):
        for i, value in enumerate(tree):
            yield from leaves(value, (*path, i))
    else:
        yield path, tree


def replaced(tree: Any, changes: Mapping[Path, Any], path: Path = ()) -> Any:
    """The same tree in containers of its own, with other values at some paths."""
    if path in changes:
        return changes[path]
    if isinstance(tree, Mapping):
        named = {key: replaced(value, changes, (*path, key)) for key, value in tree.items()}
        cls: Any = type(tree)  # an output of diffusers is a mapping and a dataclass
        return cls(**named) if dataclasses.is_dataclass(tree) else named
    if isinstance(tree, (tuple, list)):
        made = [replaced(value, changes, (*path, i)) for i, value in enumerate(tree)]
        return made if isinstance(tree, list) else tuple(made)
    return tree


def told_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], holes: Mapping[Path, str]) -> Told:
    """A recorded call without its latent and times. Raises ConfigurationError for what is no plain value."""
    tree = (args, dict(kwargs))
    for path, value in leaves(tree):
        if not isinstance(value, PLAIN):
            raise ConfigurationError(
                f"The denoiser is given a {type(value).__name__} ({path[-1]}), which cannot be kept and given again."
            )
    changes: dict[Path, Any] = {path: Hole(what) for path, what in holes.items()}
    kept = {
        path: value.detach().clone()
        for path, value in leaves(tree)
        if isinstance(value, Tensor) and path not in changes
    }
    words = {
        path: str(value) for path, value in leaves(tree) if isinstance(value, (torch.dtype, torch.device))
    }
    positional, named = replaced(tree, {**kept, **words, **changes})
    latent = next(iter(holes))
    if latent[0] == 1:  # whoever counts the rows of a call looks at its first argument
        named = {latent[1]: named.pop(latent[1]), **named}
    return Told(positional, named)
