"""Each sample's own caption as its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.technique import Technique

if TYPE_CHECKING:
    from gate.request import Batch, Conditioning
    from gate.sample import Sample

SLOT = "{caption}"


@dataclass(kw_only=True)
class Prompt(Technique):
    """Fine-grained prompt (Meng et al. 2024, section 5.3): c = text encoder(caption) in eps_theta(x_t, t, c).

    template: what surrounds the caption, "" for no prompt at all. quality: words added after a comma; whether
    praise or blame helps depends on the data (the paper's "high quality" for Horse-21, "low quality" for
    CIFAR-10).
    """

    name = "prompt"
    summary = "Denoise under the sample's own caption."
    source = "Meng et al. 2024 (arXiv 2410.06719), section 5.3"
    families = frozenset({"text"})
    needs = frozenset({"captions"})
    neutral: ClassVar = {"template": "", "quality": ""}
    compositions: ClassVar[tuple[str, ...]] = (
        "prompt+guidance-cfg",
        "prompt+ddim-inversion",
    )

    template: str = SLOT
    quality: str = ""

    def __post_init__(self) -> None:
        if self.template and SLOT not in self.template:
            raise ValueError(
                f"template must hold {SLOT}, or be empty; generic-prompt takes one text for all."
            )

    def texts(self, batch: Batch) -> list[str]:
        """One prompt per sample of the batch."""
        return [self._text(self.caption(sample, batch)) for sample in batch.samples]

    def caption(self, sample: Sample, batch: Batch) -> str:
        """The words that stand for `sample`."""
        return sample.caption or ""

    def _text(self, caption: str) -> str:
        text = self.template.replace(SLOT, caption)
        return ", ".join(part for part in (text, self.quality) if part)

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        return conditioning.with_text(batch.backbone.encode_prompts(self.texts(batch)))
