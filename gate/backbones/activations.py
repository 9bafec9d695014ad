"""The one primitive under everything else: named activations of an unmodified denoiser, through forward hooks."""

# long: one primitive: hooks, what they keep, and when they end a forward
from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gate.backbones.aliases import canonical
from gate.backbones.layers import MEAN_MAP, cross_maps, layer_paths, resolve_layers
from gate.backbones.maps import Attention, mean_map
from gate.errors import ConfigurationError, UsageError

# classes in which the image comes before the text where two streams lie end to end
IMAGE_FIRST = (
    *("SD3Transformer2DModel", "ZImageTransformer2DModel", "HiDreamImageTransformer2DModel"),
    "HunyuanImageTransformer2DModel",
)


class Features(dict[str, Tensor]):
    """{layer id: activation}; aliases are understood as keys too."""

    def __missing__(self, name: str) -> Tensor:
        layer = canonical(name, dict.fromkeys(self, ""))
        if layer in self:
            return self[layer]
        raise KeyError(name)


class Captured(Features):
    """The activations of the latest forward.

    calls: forwards so far. steps: {number of the forward, from 0: its activations}, of those that were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.steps: dict[int, Features] = {}


@dataclass
class _Forward:
    """What is known of the running forward: the image's token grid, and where its tokens lie among the text's."""

    grid: tuple[int, int] = (1, 1)
    joint: bool = False
    image_first: bool = False

    def read(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Returns the latent that the denoiser is given."""
        names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x = given[names[0]]
        x = x[0] if isinstance(x, (list, tuple)) else x
        self.joint = not hasattr(denoiser, "down_blocks")
        self.image_first = type(denoiser).__name__ in IMAGE_FIRST
        if x.ndim == 3 and not isinstance(given[names[0]], (list, tuple)):  # packed
            self.grid = _packed_grid(x.shape[1], given)
            return _tensor(x)
        unit = _unit(denoiser, given) if self.joint else 1
        self.grid = int(x.shape[-2]) // unit, int(x.shape[-1]) // unit
        return _tensor(given[names[0]])

    def keep(self, into: dict[str, Tensor], layer: str, x: Tensor) -> None:
        """Store a layer. A module that serves image and text in turn is called twice: the image's call stays."""
        if not (layer in into and self.joint and x.ndim == 3 and x.shape[1] < self.grid[0] * self.grid[1]):
            into[layer] = self.as_map(x)

    def image_part(self, x: Tensor, dim: int) -> Tensor:
        """The image's tokens of image and text, along `dim`."""
        n = self.grid[0] * self.grid[1]
        if not self.joint or x.shape[dim] <= n:
            return x
        return x.narrow(dim, 0 if self.image_first else x.shape[dim] - n, n)

    def text_part(self, x: Tensor, dim: int) -> Tensor:
        n = self.grid[0] * self.grid[1]
        return x.narrow(dim, n if self.image_first else 0, x.shape[dim] - n)

    def as_map(self, x: Tensor) -> Tensor:
        """Tokens (b, n, d) -> (b, d, h, w) with the latent's own aspect ratio; other shapes stay as they are."""
        if x.ndim != 3:
            # what follows may write into it: FreeU scales half of its input's channels in place
            return x.clone()
        laid = as_map(self.image_part(x, 1), self.grid)
        return laid if laid.ndim == 4 else x.clone()


def as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (b, n, d) -> (b, d, h, w) with the aspect ratio of `grid`; what cannot be laid out stays as it is."""
    if x.ndim != 3:
        return x
    b, n, d = x.shape
    h = round(math.sqrt(n * grid[0] / grid[1]))
    if not h or n % h:
        return x
    return x.transpose(1, 2).reshape(b, d, h, n // h)


class _Reached(Exception):
    """All that is wanted is there: what called the denoiser need not wait for the rest of its forward."""


@contextlib.contextmanager
def capture(
    denoiser: nn.Module,
    layers: str | Iterable[str] | Mapping[str, str | bool],
    *,
    steps: Collection[int] | str = (),
    strict: bool = True,
    stop: bool = False,
) -> Iterator[Captured]:
    """Activations of any diffusers denoiser that you call: in your own loop, or inside a pipeline that generates.

    layers: ids, aliases and presets (`gate list layers`), {id: True}, or {name: place} (layers.py). Yields what each
    forward fills anew, {id: (b, c, h, w)}; maps are (b, heads, positions, keys). With guidance, b is twice the batch.
    steps: which forwards to keep besides, counted from 0, or "all": `seen.steps[3]["up1"]`.
    strict: whether a layer that a forward does not reach is an error (ConfigurationError). stop: end the forward once
    all are there, and the block with it: nothing after the call is run. What is captured is the same to the last bit.
    Nothing in the denoiser is changed; hooks go when the block ends. Only where a map is wanted are softmax weights
    computed, beside the attention and not in its place. Raises UsageError for an unknown layer.
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wrapped
    if not isinstance(denoiser, nn.Module):
        raise UsageError(
            f"gate.capture takes the denoiser itself, such as pipe.unet, pipe.transformer or backbone.denoiser, not a "
            f"{type(denoiser).__name__}."
        )
    if isinstance(steps, str) and steps != "all":
        raise UsageError(f'steps are numbers of forwards, such as [0, 10], or "all"; not {steps!r}.')
    paths: dict[str, str] = {}
    if isinstance(layers, Mapping) and all(isinstance(path, str) for path in layers.values()):
        paths.update({layer: str(path) for layer, path in layers.items()})
    else:
        wanted = [k for k, v in layers.items() if v] if isinstance(layers, Mapping) else layers
        known = layer_paths(denoiser)
        paths.update({layer: known[layer] for layer in resolve_layers(wanted, known)})
    seen, forward, maps = Captured(), _Forward(), dict[str, Tensor]()
    handles = [denoiser.register_forward_pre_hook(_start(seen, forward, maps, paths), with_kwargs=True)]
    finish = _finish(seen, forward, maps, paths, steps, strict)
    try:
        for layer, path in paths.items():
            module, _, what = path.partition(":")
            if what == MEAN_MAP:
                for place in cross_maps(layer_paths(denoiser)):
                    handles += _watch(denoiser, place, place, maps, forward)
            elif module or what != "in":
                handles += _watch(denoiser, path, layer, seen, forward)
        if stop:
            handles += _stop(denoiser, paths, seen, maps, finish)
        handles.append(denoiser.register_forward_hook(finish))
        yield seen
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _start(seen: Captured, forward: _Forward, maps: dict[str, Tensor], paths: Mapping[str, str]) -> Any:
    def hook(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.clear()
        maps.clear()
        latent = forward.read(denoiser, args, kwargs)
        for layer, path in paths.items():
            if path == ":in":
                seen[layer] = forward.as_map(latent)

    return hook


def _finish(
    seen: Captured,
    forward: _Forward,
    maps: dict[str, Tensor],
    paths: Mapping[str, str],
    steps: Collection[int] | str,
    strict: bool,
) -> Any:
    def hook(*_: Any) -> None:
        for layer, path in paths.items():
            if path == f":{MEAN_MAP}" and maps:
                seen[layer] = mean_map(list(maps.values()), forward.grid)
        missing = [layer for layer in paths if layer not in seen]
        if strict and missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ConfigurationError(
                f"The forward went past {missing[0]}{more}. A denoiser that was compiled as a whole does not call its "
                "modules one by one: capture before torch.compile, or compile block by block."
            )
        if steps == "all" or seen.calls in steps:
            seen.steps[seen.calls] = Features(seen)
        seen.calls += 1

    return hook


def _stop(
    denoiser: nn.Module,
    paths: Mapping[str, str],
    seen: Captured,
    maps: Mapping[str, Tensor],
    finish: Callable[[], None],
) -> list[Any]:
    """Hooks that end the forward once every layer is there, after those that keep them.

    Where image and text are served in turn, at the end of a block: only then is it known which call was the image's.
    """
    mean = f":{MEAN_MAP}"
    crosses = cross_maps(layer_paths(denoiser)) if mean in paths.values() else []
    layers = [layer for layer, path in paths.items() if path != mean]
    joint = not hasattr(denoiser, "down_blocks")

    def check(*_: Any) -> None:
        if all(layer in seen for layer in layers) and all(place in maps for place in crosses):
            finish()
            raise _Reached

    handles = []
    for place in {*paths.values(), *crosses} - {mean, ""}:
        where, _, what = place.partition(":")
        module = denoiser.get_submodule(".".join(where.split(".")[: 2 if joint else None]))
        before = what == "in" and not (joint and where)
        handles.append((module.register_forward_pre_hook if before else module.register_forward_hook)(check))
    return handles


def _watch(
    denoiser: nn.Module, path: str, layer: str, into: dict[str, Tensor], forward: _Forward
) -> list[Any]:
    """Hooks that put what is at a place into `into[layer]`."""
    where, _, what = path.partition(":")
    module = denoiser.get_submodule(where) if where else denoiser
    if what == "in":

        def given(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            forward.keep(into, layer, _tensor(args[0] if args else kwargs["hidden_states"]))

        return [module.register_forward_pre_hook(given, with_kwargs=True)]
    if not what:

        def output(_: nn.Module, __: Any, made: Any) -> None:
            first = "to_q" in module._modules
            forward.keep(into, layer, _tensor(made, first, forward.grid[0] * forward.grid[1]))

        return [module.register_forward_hook(output)]
    running: list[Attention] = []

    def enter(_: nn.Module, __: Any) -> None:
        running.append(Attention())
        running[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(_: nn.Module, __: Any, made: Any) -> None:
        mode = running.pop()
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if made is None:
            return  # the attention itself failed; its own error is on its way
        weights = mode.weights(where)
        if what != "map":
            weights = forward.image_part(weights, 2)
            weights = (forward.image_part if what == "self-map" else forward.text_part)(weights, 3)
        into[layer] = weights

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


def _tensor(made: Any, first: bool = False, n: int = 0) -> Tensor:
    """The image's tensor in what a module takes or gives: of two streams that of n tokens, else the last or first."""
    if hasattr(made, "sample"):
        made = made.sample
    if isinstance(made, tuple) and len(made) == 1:
        made = made[0]
    if isinstance(made, list) and all(isinstance(x, Tensor) and x.ndim == 4 for x in made):
        made = torch.stack(made).squeeze(2)  # (c, 1, h, w) each
    if isinstance(made, (tuple, list)):
        tensors = [item for item in made if isinstance(item, Tensor)]
        fitting = [item for item in tensors if item.ndim == 3 and item.shape[1] == n]
        if len(tensors) > 1 and len(fitting) == 1:
            made = fitting[0]
        elif tensors:
            made = tensors[0] if first or not isinstance(made[-1], Tensor) else made[-1]
    if not isinstance(made, Tensor):
        raise TypeError(f"A layer gave {type(made).__name__}, not a tensor.")
    return made


def _packed_grid(n: int, given: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of packed tokens, from the positions or shapes that the denoiser is told; else a square."""
    shapes, ids = given.get("img_shapes"), given.get("img_ids")
    if shapes is not None:
        first = shapes[0][0] if isinstance(shapes[0], (list, tuple)) else shapes[0]
        return int(first[-2]), int(first[-1])
    if isinstance(ids, Tensor) and ids.device.type != "meta":
        rows, columns = (int(ids[..., axis].max()) + 1 for axis in (1, 2))
        if rows * columns == n:
            return rows, columns
    side = max(1, round(math.sqrt(n)))
    return side, n // side


def _unit(denoiser: nn.Module, given: Mapping[str, Any]) -> int:
    config: Any = getattr(denoiser, "config", {})
    size = given.get("patch_size") or config.get("patch_size") or config.get("all_patch_size", (1,))
    return int(size[0] if isinstance(size, (list, tuple)) else size)
