"""InfoDiffusion's auxiliary latent: an encoder of the image, whose few numbers join the denoiser's time embedding."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gate.errors import ConfigurationError

if TYPE_CHECKING:
    from gate.backbone import Backbone

CODE = 32  # numbers, as in the paper's experiments
GRID = 4  # positions a side of the map that becomes the code
WIDTHS = (32, 64, 64)
EMBEDDERS = ("time_embedding", "timestep_embedder")  # what diffusers' denoisers call the one of t


class InfoLatent(nn.Module):
    """x0 -> a (32 numbers) -> what is added to the time embedding; at first nothing, for the last map is zero.

    code: numbers of a. channels: of x0. width: of the time embedding.
    """

    def __init__(self, channels: int, width: int, code: int = CODE) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(GRID),
            nn.Flatten(),
            nn.Linear(third * GRID * GRID, code),
        )
        self.joined = nn.Linear(code, width)
        nn.init.zeros_(self.joined.weight)
        nn.init.zeros_(self.joined.bias)

    def code(self, x0: Tensor) -> Tensor:
        """a, (b, code). x0: (b, c, h, w) of any size."""
        made: Tensor = self.encoder(x0.float())
        return made

    def forward(self, x0: Tensor) -> Tensor:
        """(b, width), what joins the time embedding."""
        joined: Tensor = self.joined(self.code(x0))
        return joined


class Carried:
    """What the hook adds now: (b, width), or None."""

    added: Tensor | None = None


@contextlib.contextmanager
def joined(denoiser: nn.Module) -> Iterator[Carried]:
    """The denoiser with a hook on its time embedding, which adds what the yielded object carries."""
    carried = Carried()

    def add(_: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return None if carried.added is None else output + carried.added.to(output)

    handle = time_embedder(denoiser).register_forward_hook(add)
    try:
        yield carried
    finally:
        handle.remove()


def time_embedder(denoiser: nn.Module) -> nn.Module:
    """The module that gives the time embedding, (b, width). Raises ConfigurationError where there is none of
    diffusers'."""
    from diffusers.models.embeddings import TimestepEmbedding

    for path, module in denoiser.named_modules():
        if isinstance(module, TimestepEmbedding) and path.rpartition(".")[2] in EMBEDDERS:
            return module
    raise ConfigurationError(
        f"{type(denoiser).__name__} has no time embedding of diffusers' own kind, so nothing can be added to it."
    )


def load_info_latent(backbone: Backbone, state: Mapping[str, Tensor], file: str) -> InfoLatent:
    """One with these weights. Raises ConfigurationError where they are of another backbone."""
    embedder: Any = time_embedder(backbone.denoiser)
    width = int(embedder.linear_2.out_features)
    try:
        channels, code = int(state["encoder.0.weight"].shape[1]), int(state["joined.weight"].shape[1])
        net = InfoLatent(channels, width, code)
        net.load_state_dict({k: v.float() for k, v in state.items()})
    except (KeyError, RuntimeError, IndexError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigurationError(
            f"{file} is no info-latent for {backbone.name}, whose time embedding has {width} numbers: {first}"
        ) from error
    return net.to(backbone.device).eval().requires_grad_(False)


def mmd_to_normal(a: Tensor) -> Tensor:
    """Squared MMD of the rows of a to N(0, I), a V-statistic. a: (n, d) -> scalar >= 0.

    Kernel exp(-mean_d((x - y)^2) / d), the paper's and InfoVAE's.
    The prior's side is its expectation, not a draw: with s = d^2 / 2 the kernel's variance, E k(x, y) over y is
    (1 + 1/s)^(-d/2) exp(-|x|^2 / (2 (s + 1))), and over both (1 + 2/s)^(-d/2).
    """
    d = a.shape[1]
    s = d * d / 2
    own = torch.exp(-(a[:, None] - a).square().sum(-1) / (2 * s)).mean()
    cross = (1 + 1 / s) ** (-d / 2) * torch.exp(-a.square().sum(-1) / (2 * (s + 1))).mean()
    return own - 2 * cross + math.pow(1 + 2 / s, -d / 2)
