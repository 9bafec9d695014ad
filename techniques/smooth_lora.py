"""A LoRA under which the prediction varies evenly with its noise: Smooth Diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.adapters.formats import OVER_FITTED, PUBLIC_SMOOTH_LORAS
from gate.adapters.networks import companion, cross_width
from gate.errors import MissingWeightsError, UnsuitableError
from gate.technique import Technique
from gate.techniques.lora import Lora

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet


@dataclass(kw_only=True)
class SmoothLora(Lora):
    """Smooth Diffusion (Guo et al. 2024, section 3): a LoRA that holds the variation of x0_hat with the noise constant.

    weights: a safetensors file, a folder of `gate fit smooth-lora`, or a hub id; "" is the backbone's own: the embedded
    companion of tiny, the public one of Stable Diffusion 1.5. The layout of the paper's code (`save_attn_procs`, keys
    without a prefix) is read as well; its pickles are not. weight_name: the file in a folder or repository. scale: 0 is
    vanilla, 1 as trained. over_fitted: take the last step of the fit, not the kept one.
    """

    name = "smooth-lora"
    summary = "Merge a LoRA that makes the prediction vary evenly with its noise."
    source = "Guo et al. 2024, Smooth Diffusion (arXiv 2312.04410)"
    variants: ClassVar = {}

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        Technique.check(self, backbone, samples)
        try:
            self._load(backbone)
        except MissingWeightsError as error:
            raise UnsuitableError(str(error)) from error

    def _source(self, backbone: Backbone) -> str:
        folder = self.weights or companion(
            backbone,
            "smooth-lora",
            fit="gate fit smooth-lora --data scenes-trained --output LORA, then screen 'smooth-lora[weights=LORA]'.",
        )
        if not folder:
            width = cross_width(backbone.denoiser)
            if width not in PUBLIC_SMOOTH_LORAS:
                raise MissingWeightsError(
                    f"No public Smooth Diffusion LoRA is known for {backbone.name}; fit one: gate fit smooth-lora "
                    f"--backbone {backbone.name} --images DIR --output LORA, then screen 'smooth-lora[weights=LORA]'."
                )
            folder = PUBLIC_SMOOTH_LORAS[width]
        return f"{folder}/{OVER_FITTED}" if self.over_fitted else folder
