"""Louder backbone features and quieter skip features in the decoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from gate.errors import UnsuitableError
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet

FACTORS = ("s1", "s2", "b1", "b2")
STAGES = 2  # up blocks, from the coarsest


@dataclass(kw_only=True)
class FreeU(Technique):
    """FreeU (Si et al. 2023) through diffusers, in the first and the second up block, before every resnet: half of
    the backbone channels times b1 and b2, and the skip's lowest frequencies (2x2 around zero) times s1 and s2.

    Factors of 1 are vanilla and nothing is attached. Blocks into which diffusers built it are told the factors, others
    are hooked. Diffusers uses the paper's constant factor, not the factor
    per position of the authors' later code. The defaults are the authors' for Stable Diffusion 1.5;
    for SDXL they advise b1 = 1.3, b2 = 1.4. On a 2x2
    map, as the coarsest of small backbones is, these frequencies are all there are: the whole skip is scaled.
    """

    name = "freeu"
    summary = "Amplify the decoder's backbone features and damp its skips' low frequencies."
    source = "Si et al. 2023, FreeU (arXiv 2309.11497)"
    families = frozenset({"unet", "sdxl", "kolors", "pixel-unet", "unconditional"})
    neutral: ClassVar = {"s1": 1.0, "s2": 1.0, "b1": 1.0, "b2": 1.0}

    s1: float = 0.9
    s2: float = 0.2
    b1: float = 1.5
    b2: float = 1.6

    def __post_init__(self) -> None:
        for key in FACTORS:
            if not getattr(self, key) > 0:  # diffusers reads 0 as "off", for all four
                raise ValueError(f"{key} must be above 0, got {getattr(self, key)}.")

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        super().check(backbone, samples)
        if not getattr(backbone.denoiser, "up_blocks", None):
            raise UnsuitableError(f"{self.name} needs a UNet with skips; that of {backbone.name} has none.")

    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        factors = {key: float(getattr(self, key)) for key in FACTORS}
        if all(value == 1 for value in factors.values()):
            yield
            return
        with contextlib.ExitStack() as stack:
            for i, block in enumerate(list(cast(Any, backbone.denoiser).up_blocks)[:STAGES]):
                if _has_freeu(block, i):
                    stack.enter_context(_told(block, factors))
                else:
                    stack.enter_context(_hooked(backbone.denoiser, i, factors))
            yield


def _has_freeu(block: Any, i: int) -> bool:
    """Whether diffusers built FreeU into this block: into two classes, where they know which stage they are."""
    return type(block).__name__ in ("UpBlock2D", "CrossAttnUpBlock2D") and block.resolution_idx == i


@contextlib.contextmanager
def _told(block: Any, factors: dict[str, float]) -> Iterator[None]:
    """A block that reads its factors; disable_freeu would leave attributes behind, and not bring a user's own back."""
    before = {key: vars(block)[key] for key in FACTORS if key in vars(block)}
    try:
        vars(block).update(factors)
        yield
    finally:
        for key in FACTORS:
            vars(block).pop(key, None)
        vars(block).update(before)


@contextlib.contextmanager
def _hooked(unet: Any, i: int, factors: dict[str, float]) -> Iterator[None]:
    """Any other block: what each of its resnets is given is the backbone's channels, then the skip's."""
    from diffusers.utils.torch_utils import apply_freeu

    def scale(width: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            both = args[0].clone()
            hidden, skip = apply_freeu(i, both[:, :width], both[:, width:], **factors)
            return (torch.cat([hidden, skip], dim=1), *args[1:])

        return hook

    import torch

    handles = [
        resnet.register_forward_pre_hook(scale(_hidden_width(unet, i, j)))
        for j, resnet in enumerate(unet.up_blocks[i].resnets)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hidden_width(unet: Any, i: int, j: int) -> int:
    """Channels that come from before, of what the j-th resnet of the i-th up block is given."""
    if j:
        before = unet.up_blocks[i].resnets[j - 1]
    elif i:
        before = unet.up_blocks[i - 1].resnets[-1]
    else:
        return int(unet.config.block_out_channels[-1])
    return int(before.out_channels)
