"""One fixed prompt for every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gate.technique import Technique

if TYPE_CHECKING:
    from gate.request import Batch, Conditioning


@dataclass(kw_only=True)
class GenericPrompt(Technique):
    """The paper's prompt for attention features: one text for all, so that their channels mean the same
    everywhere.

    prompt: describes the images and their quality in general; "" is the neutral prompt. The default is made
    of words that any caption vocabulary has; name what your images have in common instead.
    """

    name = "generic-prompt"
    summary = "Denoise under one prompt for all samples."
    source = "Meng et al. 2024 (arXiv 2410.06719), section 5.3"
    families = frozenset({"text"})
    neutral: ClassVar = {"prompt": ""}

    prompt: str = "a high quality photo of a scene"

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        return conditioning.with_text(batch.backbone.encode_prompts([self.prompt] * len(batch)))
