"""The one primitive under everything else: named activations of an unmodified denoiser, through forward hooks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def capture(denoiser: nn.Module, paths: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    """Collect activations while the block runs.

    paths: layer id -> module path. Yields a dict that each forward fills anew: {layer id: (b, c, h, w)}. Token
    activations (b, n, d) become (b, d, h, w) with the latent's own aspect ratio; other shapes stay as they are.
    """
    features: dict[str, Tensor] = {}
    aspect = [1.0]

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["sample"]
        features.clear()
        aspect[0] = x.shape[-2] / x.shape[-1]

    def keep(layer: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            features[layer] = _as_map(output, aspect[0])

        return hook

    handles = [denoiser.register_forward_pre_hook(before, with_kwargs=True)]
    try:
        for layer, path in paths.items():
            handles.append(denoiser.get_submodule(path).register_forward_hook(keep(layer)))
        yield features
    finally:
        for handle in handles:
            handle.remove()


def _as_map(output: Any, aspect: float) -> Tensor:
    if isinstance(output, (tuple, list)):
        output = output[0]
    elif hasattr(output, "sample"):
        output = output.sample
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"A layer gave {type(output).__name__}, not a tensor.")
    if output.ndim == 3:
        b, n, d = output.shape
        h = round(math.sqrt(n * aspect))
        if h and n % h == 0:
            return output.transpose(1, 2).reshape(b, d, h, n // h)
    return (
        output.clone()
    )  # what follows may write into it: FreeU scales half of its input's channels in place
