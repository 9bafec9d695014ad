"""Low-rank residuals on a frozen denoiser's projections, added by hooks: the denoiser is never changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gate.errors import ConfigurationError, UsageError
from gate.sample import Sample

if TYPE_CHECKING:
    from gate.backbone import Backbone

PLACES = ("to_q", "to_k", "to_v", "to_out.0")  # of an attention in diffusers


class LowRank(nn.Module):
    """x -> W x + up(down(x)) on some linear modules (Hu et al. 2022, Eq. 3, alpha = rank); `up` begins at zero.

    shapes: {module path: (outputs, inputs)}; parameters are float32 and named by the path, with `.down`,
    (rank, inputs), drawn from torch's own generator, and `.up`, (outputs, rank).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int) -> None:
        super().__init__()
        if rank < 0 or (shapes and not rank):
            raise UsageError(f"An adapter's rank is at least 1, not {rank}.")
        self.paths = tuple(shapes)
        for path, (outputs, inputs) in shapes.items():
            leaf = self._leaf(path)
            leaf.down = nn.Parameter(torch.randn(rank, inputs) / rank)
            leaf.up = nn.Parameter(torch.zeros(outputs, rank))

    def _leaf(self, path: str) -> nn.Module:
        """A module of its own under the denoiser's own path, so that keys of a state_dict read like the denoiser's."""
        module: nn.Module = self
        for name in path.split("."):
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        return module

    def __len__(self) -> int:
        return len(self.paths)

    @contextlib.contextmanager
    def on(self, denoiser: nn.Module) -> Iterator[None]:
        """For a while, the residuals are added. Whatever watches these modules from within sees the sum."""
        handles = []
        for path in self.paths:
            hook = self._added(self.get_submodule(path))
            handles.append(denoiser.get_submodule(path).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _added(leaf: Any) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            x = args[0]
            return output + linear(linear(x, leaf.down.to(x.dtype)), leaf.up.to(x.dtype))

        return hook


def projections(backbone: Backbone, timestep: int, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """{path: (outputs, inputs)} of the attention projections that features of these layers depend on.

    Found by one forward of a grey image that stops where the features' forward will. Raises ConfigurationError where
    there are none.
    """
    reached: dict[str, tuple[int, int]] = {}
    handles = []
    for path, module in backbone.denoiser.named_modules():
        if path.endswith(PLACES) and isinstance(module, nn.Linear):

            def note(linear: Any, *_: Any, path: str = path) -> None:
                reached[path] = (linear.out_features, linear.in_features)

            handles.append(module.register_forward_hook(note))
    size = backbone.image_size
    grey = Sample(np.full((size, size, 3), 128, np.uint8), label=0)
    try:
        with torch.no_grad():
            backbone.reach(backbone.batch([grey]).request(timestep, 0), layers)
    finally:
        for handle in handles:
            handle.remove()
    if not reached:
        raise ConfigurationError(
            f"Nothing before {layers[-1]} of {backbone.name} is an attention projection; adapters have no place there."
        )
    return reached
