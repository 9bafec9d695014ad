"""A denoiser without weights: built and run once on the meta device, to say what its layers are and what they cost."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gate.backbone import LayerInfo, is_map
from gate.backbones.activations import capture
from gate.backbones.hush import hushed
from gate.backbones.layers import MEAN_MAP, cross_maps, layer_paths
from gate.errors import ConfigurationError

Sketch = tuple[nn.Module, Callable[[], Any], int]


def sketched_layers(family: Any, class_name: str, config: Mapping[str, Any]) -> list[LayerInfo]:
    """Every layer of a denoiser with this config, in the order of its forward, at the size that it was made for."""
    return listed(*sketched(family, class_name, config))


def listed(denoiser: nn.Module, forward: Callable[[], Any], side: int) -> list[LayerInfo]:
    """Every layer of a denoiser that its forward reaches, in order. side: of the latent."""
    with torch.no_grad():
        paths = layer_paths(denoiser)
        with capture(denoiser, paths, strict=False) as seen:
            forward()
        found = {layer: path for layer, path in paths.items() if layer in seen and seen[layer].ndim == 4}
        costs = _costs(denoiser, found, forward)
    rows = []
    for layer, path in found.items():
        shape = seen[layer].shape
        across = round(shape[2] ** 0.5) if is_map(path) else shape[3]
        rows.append(
            LayerInfo(layer, path, shape[1], max(1, side // across), layer.split(".")[0], costs[layer])
        )
    return rows


def bare_layers(class_name: str, config: Mapping[str, Any]) -> list[LayerInfo]:
    """Every layer of a denoiser that no family calls, read off its modules alone.

    channels are those that a module says of itself, else 0; stride and cost, which only a forward tells, are 0. Raises
    ConfigurationError where diffusers has no such denoiser, or it has no block that is known.
    """
    import diffusers

    found = getattr(diffusers, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, diffusers.ModelMixin)):
        raise ConfigurationError(f"diffusers {diffusers.__version__} has no denoiser {class_name}.")
    cls: Any = found
    with torch.device("meta"), hushed():
        try:
            denoiser = cls.from_config({k: v for k, v in config.items() if not k.startswith("_")})
        except Exception as error:  # a constructor raises what its arguments happen to break
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(f"{class_name} cannot be built from this config: {first}") from error
    paths = layer_paths(denoiser)
    if not any(layer.rstrip("0123456789") in BLOCKS for layer in paths):
        raise ConfigurationError(
            f"{class_name} has no blocks whose places are known; gate.capture takes module paths."
        )
    return [
        LayerInfo(layer, path, _width(denoiser, path), 0, layer.split(".")[0], 0.0)
        for layer, path in paths.items()
    ]


BLOCKS = ("down", "mid", "up", "block", "single", "refiner")


def _width(denoiser: nn.Module, path: str) -> int:
    """What a module says of its own output; of what it is given, for a place before it."""
    where, _, what = path.partition(":")
    module = denoiser.get_submodule(where) if where else denoiser
    if is_map(path):
        return int(getattr(module, "heads", 0) or 0)
    names = ("in_features", "in_channels") if what == "in" else ("out_features", "out_channels")
    found = next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), int)), 0)
    return int(found)


def forward_flops(backbone: Any) -> float:
    """FLOPs of one denoiser call for one image at the backbone's size. On the meta device attention is counted too."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.sketch(backbone.side)[1]()
    return float(counter.get_total_flops())


def encode_flops(backbone: Any) -> float:
    """FLOPs of encoding one image at the backbone's size; 0 where latents are pixels."""
    if backbone.vae is None:
        return 0.0
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        with hushed():
            vae = type(backbone.vae).from_config(backbone.vae.config).eval()
        vae.encode(backbone._framed(torch.empty(1, 3, backbone.image_size, backbone.image_size)))
    return float(counter.get_total_flops())


def sketched(family: Any, class_name: str, config: Mapping[str, Any], side: int = 0) -> Sketch:
    """The denoiser on the meta device, its forward as the family calls it, and the latent's side (0: its own)."""
    import diffusers

    cls: Any = getattr(diffusers, class_name, None) if class_name in family.denoisers else None
    if cls is None:
        raise ConfigurationError(
            f"The {family.family} family does not call {class_name}, or diffusers {diffusers.__version__} has none yet."
        )
    with hushed(), torch.device("meta"):  # a config may be older or newer than this diffusers
        denoiser = cls.from_config({k: v for k, v in config.items() if not k.startswith("_")}).eval()
    made: Any = object.__new__(family)
    made.denoiser, made._config, made.index, made.vae = denoiser, denoiser.config, {}, None
    made.device, made.dtype, made.image_size = torch.device("meta"), torch.float32, 8 * family.default_side
    made.extra, made._blank = family.accepts(class_name, {}, denoiser.config), None
    side, channels = side or family.native_side(denoiser.config), family.own_channels(denoiser.config)
    if family.packed:
        channels //= int(family.patch or 1) ** 2

    def forward() -> Tensor:
        with torch.device("meta"):
            x, t, given = torch.empty(1, channels, side, side), torch.ones(1), family.blank(denoiser.config)
            output: Tensor = made.call(x, t, given, _NoResiduals())
        return output

    return denoiser, forward, side


class _NoResiduals:
    """What a family's `call` reads of a request."""

    residuals: Mapping[str, Any] = {}


def _costs(denoiser: nn.Module, paths: Mapping[str, str], forward: Callable[[], Any]) -> dict[str, float]:
    """Share of the forward's FLOPs that are spent when a layer is there, 0 to 1."""
    spent: dict[str, float] = {}
    counter = FlopCounterMode(display=False)
    with _noted(denoiser, paths, spent, counter.get_total_flops), counter:
        forward()
    total = counter.get_total_flops() or 1
    crosses = [spent[place] for place in cross_maps(paths) if place in spent]
    return {
        layer: (max(crosses) if layer == MEAN_MAP else spent[path]) / total for layer, path in paths.items()
    }


@contextlib.contextmanager
def _noted(
    denoiser: nn.Module, paths: Mapping[str, str], spent: dict[str, float], so_far: Callable[[], float]
) -> Iterator[None]:
    handles = []
    for path in paths.values():
        where, _, what = path.partition(":")
        module = denoiser.get_submodule(where) if where else denoiser

        def note(*_: Any, path: str = path) -> None:
            spent[path] = so_far()

        hooked = module.register_forward_pre_hook if what == "in" else module.register_forward_hook
        handles.append(hooked(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
