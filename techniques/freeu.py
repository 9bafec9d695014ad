"""Louder backbone features and quieter skip features in the decoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gate.errors import UnsuitableError
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet

FACTORS = ("s1", "s2", "b1", "b2")


@dataclass(kw_only=True)
class FreeU(Technique):
    """FreeU (Si et al. 2023) through diffusers, in the first and the second up block, before every resnet: half of
    the backbone channels times b1 and b2, and the skip's lowest frequencies (2x2 around zero) times s1 and s2.

    Factors of 1 are vanilla and nothing is attached. Diffusers uses the paper's constant factor, not the factor
    per position of the authors' later code. The defaults are the authors' for Stable Diffusion 1.5. On a 2x2
    map, as the coarsest of small backbones is, these frequencies are all there are: the whole skip is scaled.
    """

    name = "freeu"
    summary = "Amplify the decoder's backbone features and damp its skips' low frequencies."
    source = "Si et al. 2023, FreeU (arXiv 2309.11497)"
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
        if not hasattr(backbone.denoiser, "enable_freeu"):
            raise UnsuitableError(
                f"{self.name} needs a denoiser with FreeU built in; that of {backbone.name} has none."
            )

    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        factors = {key: float(getattr(self, key)) for key in FACTORS}
        if all(value == 1 for value in factors.values()):
            yield
            return
        denoiser: Any = backbone.denoiser
        blocks = list(denoiser.up_blocks)
        before = [{k: vars(block)[k] for k in FACTORS if k in vars(block)} for block in blocks]
        try:
            denoiser.enable_freeu(**factors)
            yield
        finally:  # disable_freeu would leave attributes behind, and would not bring back a user's own factors
            for block, held in zip(blocks, before, strict=True):
                for key in FACTORS:
                    vars(block).pop(key, None)
                vars(block).update(held)
