"""Each image's caption as its prompt, written by an image-to-text model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gate.errors import MissingWeightsError, UnsuitableError
from gate.techniques.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch
    from gate.sample import Sample, SampleSet

PUBLIC = "Salesforce/blip-image-captioning-base"
OWN = "own"


@dataclass(kw_only=True)
class Caption(Prompt):
    """Fine-grained prompts for images without captions (Meng et al. 2024, section 5.3: a captioner's words).

    model: a transformers image-to-text model, as folder or hub id; `own` takes the samples' own captions; "" is
    `own` on tiny, whose scenes know what they show, and BLIP elsewhere. template, quality: as `prompt` has them.
    """

    name = "caption"
    summary = "Denoise under a caption that a model wrote for the image."
    source = "Meng et al. 2024 (arXiv 2410.06719), section 5.3; Li et al. 2022 (arXiv 2201.12086)"
    needs = frozenset({"weights"})
    compositions = ()

    model: str = ""
    _captioner: Any = field(default=None, init=False, repr=False)
    _captions: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        super().check(backbone, samples)
        if self._model(backbone) == OWN:
            if not samples.has_captions:
                raise UnsuitableError(
                    f"{self.name} on {backbone.name} takes the images' own captions, and some have none.",
                    f"Set a model, e.g. caption[model={PUBLIC}].",
                )
            return
        try:
            self._load(backbone)
        except MissingWeightsError as error:
            raise UnsuitableError(str(error)) from error

    def _model(self, backbone: Backbone) -> str:
        return self.model or (OWN if backbone.name == "tiny" else PUBLIC)

    def _load(self, backbone: Backbone) -> Any:
        from gate.adapters.vision import load_vision

        if self._captioner is None:
            self._captioner = load_vision(
                self._model(backbone),
                "image-to-text",
                "captioner",
                device=backbone.device,
                words=True,
            )
        return self._captioner

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        if self.template:
            for sample in samples:
                self._write(sample, backbone)

    def _write(self, sample: Sample, backbone: Backbone) -> str:
        if sample.id not in self._captions:
            own = self._model(backbone) == OWN
            self._captions[sample.id] = (
                (sample.caption or "") if own else self._load(backbone).caption(sample.image)
            )
        return self._captions[sample.id]

    def state(self) -> dict[str, Tensor]:
        """The captions that were written, as UTF-8 bytes under each sample's id."""
        import torch

        return {
            identity: torch.tensor(list(text.encode()), dtype=torch.uint8)
            for identity, text in self._captions.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._captions = {identity: bytes(codes.tolist()).decode() for identity, codes in state.items()}

    def caption(self, sample: Sample, batch: Batch) -> str:
        return self._write(sample, batch.backbone)
