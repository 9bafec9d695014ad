"""A LoRA merged into the denoiser, and into the text encoder where it has one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gate.adapters.formats import OVER_FITTED
from gate.adapters.networks import companion
from gate.adapters.weights import TakesFile, unfitted

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone

SHIPPED = ("lora-sketches", "lora-quality")  # beside tiny


@dataclass(kw_only=True)
class Lora(TakesFile):
    """LoRA fitted to the domain of the images (Meng et al. 2024, section 5.3; Hu et al. 2022, Eq. 3).

    W + scale alpha / rank B A, merged once and swapped in: it costs nothing per call, and detaching brings the very
    same tensors back. weights: a safetensors file, a folder of `gate fit lora`, or a hub id, in any layout that
    diffusers reads; on tiny also the name of a companion, lora-sketches ("") or lora-quality. weight_name: the file in
    a folder or repository. scale: 0 is vanilla, 1 as trained. over_fitted: take the last step of `gate fit lora`, where
    the held-out error had risen again (the paper's second LoRA), not the best one.
    """

    name = "lora"
    summary = "Merge a LoRA of the images' domain into the weights."
    source = "Meng et al. 2024 (arXiv 2410.06719), section 5.3; Hu et al. 2022 (arXiv 2106.09685)"
    families = frozenset({"unet", "sdxl"})
    neutral: ClassVar = {"scale": 0.0}
    variants: ClassVar = {"lora-over-fitted": {"over_fitted": True}}

    scale: float = 1.0
    over_fitted: bool = False
    _merged: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def attach(self, backbone: Backbone) -> AbstractContextManager[None]:
        from gate.adapters.merge import swapped

        return swapped(backbone, self._load(backbone))

    def _load(self, backbone: Backbone) -> dict[str, Tensor]:
        from gate.adapters.merge import lora_weights

        if self._merged is None:
            self._merged = (
                lora_weights(backbone, self._source(backbone), self.weight_name, self.scale)
                if self.scale
                else {}
            )
        return self._merged

    def _source(self, backbone: Backbone) -> str:
        folder = self.weights
        if not folder and backbone.name != "tiny":
            raise unfitted(self, "weights", backbone, "LORA")
        if not folder or (backbone.name == "tiny" and folder in SHIPPED):
            folder = companion(
                backbone,
                folder or SHIPPED[0],
                fit="gate fit lora --data sketches-trained --output LORA, then screen 'lora[weights=LORA]'.",
            )
        return f"{folder}/{OVER_FITTED}" if self.over_fitted else folder
