"""A cut forward through torch.compile: the unmodified denoiser with hooks, and what leads to them alone.

What comes after the last wanted layer is dead code to the compiler, so nobody writes the forward down a second time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gate.backbone import is_map
from gate.backbones.layers import FUSED, MEAN_MAP
from gate.backbones.maps import as_map
from gate.errors import ConfigurationError

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.request import Conditioning, Request

Given = tuple[Tensor, ...]


@contextlib.contextmanager
def compiled(backbone: Backbone, **options: Any) -> Iterator[None]:
    """For a while, calls that want activations alone run compiled (`Backbone.reach`); others run as ever.

    options: of torch.compile. Raises ConfigurationError where a map is wanted, or residuals are given: those run in
    eager mode alone.
    """
    graphs: dict[tuple[str, ...], _Graph] = {}

    def reach(request: Request, layers: Sequence[str]) -> dict[str, Tensor]:
        wanted = tuple(layers)
        if wanted not in graphs:
            graphs[wanted] = _Graph(backbone, wanted, options)
        return graphs[wanted](request)

    own: Any = backbone
    own.reach = reach
    try:
        yield
    finally:
        del own.reach
        for graph in graphs.values():
            graph.close()


class _Graph:
    """Hooks on a denoiser, and the compiled function that runs it and returns what they saw."""

    def __init__(self, backbone: Any, layers: tuple[str, ...], options: Mapping[str, Any]) -> None:
        self.backbone, self.layers, self.batch = backbone, layers, 0
        places = [backbone.layer_paths[layer] for layer in layers]
        maps = [
            k for k, place in zip(layers, places, strict=True) if is_map(place) or place == f":{MEAN_MAP}"
        ]
        if maps:
            raise ConfigurationError(f"{maps[0]} is a map; maps are not compiled.")
        if getattr(backbone, "widened", False):
            raise ConfigurationError(
                f"{backbone.name} is recorded: each of its rows is a call with arguments of its own, which is not "
                "compiled; leave --compile out."
            )
        if not hasattr(backbone.denoiser, "down_blocks"):
            raise ConfigurationError(f"{backbone.name} is no UNet; only their forwards are compiled.")
        self.seen: dict[str, Any] = {}
        self.handles = [_hook(backbone.denoiser, place, self.seen) for place in places]
        self.places = places
        self.run: Callable[..., Given] = torch.compile(
            self._forward, fullgraph=True, dynamic=False, **options
        )

    def _forward(self, x: Tensor, t: Tensor, given: Conditioning, request: Any) -> Given:
        self.backbone.call(x, t, given, request)
        return tuple(self.seen[place] for place in self.places)

    def __call__(self, request: Request) -> dict[str, Tensor]:
        if request.residuals:
            raise ConfigurationError("A technique that adds residuals is not compiled; leave --compile out.")
        backbone, n = self.backbone, len(request.x_t)
        self.batch = max(self.batch, n)
        # the last batch is often smaller: rows that are made and dropped cost less than compiling for it
        rows = [i % n for i in range(self.batch)]
        x = request.x_t[rows].to(backbone.dtype)
        t = backbone.schedule.told(request.t_condition[rows]).to(backbone.device)
        given = request.conditioning.rows(rows).replace(prompts=())
        try:
            made = self.run(x, t, given, _Nothing())
        except torch._dynamo.exc.TorchDynamoException as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(
                f"The forward of {backbone.name} cannot be compiled as one graph ({first}); leave --compile out."
            ) from error
        self.seen.clear()  # what is there when a call begins is part of what was compiled for
        grid = (int(x.shape[-2]), int(x.shape[-1]))
        return {layer: as_map(value, grid)[:n] for layer, value in zip(self.layers, made, strict=True)}

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class _Nothing:
    """What a family's `call` reads of a request that has no residuals."""

    residuals: Mapping[str, Any] = {}


def _hook(denoiser: nn.Module, place: str, into: dict[str, Any]) -> Any:
    where, _, what = place.partition(":")
    module = denoiser.get_submodule(where) if where else denoiser
    if what == "in":

        def given(_: nn.Module, args: Any) -> None:
            into[place] = args[0]

        return module.register_forward_pre_hook(given)

    def made(_: nn.Module, __: Any, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        into[place] = x.chunk(3, dim=-1)[FUSED.index(what)] if what in FUSED else x

    return module.register_forward_hook(made)
