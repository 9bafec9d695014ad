"""A denoiser without weights: built and run once on the meta device, to say what its layers are and what they cost."""

from __future__ import annotations

import contextlib
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
    side, channels = side or family.native_side(denoiser.config), int(denoiser.config["in_channels"])
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
