"""A learned word of the images' domain in the prompt: textual inversion."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gate.adapters.formats import WORD_TEMPLATE, WORDS_FILE
from gate.adapters.networks import companion, load_tensors, local_file
from gate.adapters.weights import TakesFile, unfitted
from gate.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Conditioning

NAMELESS = "emb_params"  # what the web UI's files call any token


@dataclass(kw_only=True)
class TextualInversion(TakesFile):
    """Textual inversion (Gal et al. 2022, Eq. 2): vectors of a new word, learned with everything else frozen.

    weights: a safetensors file, a folder of `gate fit textual-inversion`, or a hub id, in diffusers' layout or the web
    UI's; weight_name: the file in a folder or repository. token: the word; "" is the one in the file, else the file's
    name. template: where the word goes in each sample's prompt; without {token} it is vanilla.
    """

    name = "textual-inversion"
    summary = "Put a learned word of the images' domain into the prompt."
    source = "Gal et al. 2022 (arXiv 2208.01618), section 4"
    neutral: ClassVar = {"template": "{prompt}"}

    token: str = ""
    template: str = WORD_TEMPLATE
    _words: dict[str, Tensor] | None = field(default=None, init=False, repr=False)
    _spelled: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        if "{prompt}" not in self.template:
            raise ValueError("template must hold {prompt}: the words of the techniques to its left, or none.")

    @property
    def active(self) -> bool:
        """Whether the word is in the prompt."""
        return "{token}" in self.template

    def _load(self, backbone: Backbone) -> dict[str, Tensor]:
        """{token: (d,) or (k, d)}, as diffusers' loader takes it; none where no word is in the prompt."""
        if not self.active:
            return {}
        if self._words is None:
            if not self.weights and backbone.name != "tiny":
                raise unfitted(self, "word", backbone, "WORD")
            source = self.weights or companion(
                backbone,
                "textual-inversion-sketches",
                fit="gate fit textual-inversion --data sketches-trained --output WORD, then screen "
                "'textual-inversion[weights=WORD]'.",
            )
            file = local_file(source, self.weight_name or WORDS_FILE, "textual inversion")
            found = load_tensors(file)
            width = backbone.components["text_encoder"].get_input_embeddings().weight.shape[1]  # type: ignore[operator]
            if len(found) != 1 or next(iter(found.values())).shape[-1] != width:
                shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(found.items())[:3])
                raise ConfigurationError(
                    f"{file.name} is no textual inversion for {backbone.name}, whose words have {width} numbers; it "
                    f"holds {shapes}."
                )
            [(word, vectors)] = found.items()
            self._words = {self.token or (Path(file).stem if word == NAMELESS else word): vectors}
        return self._words

    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        if not self.active:
            yield
            return
        from gate.adapters.words import with_words

        with with_words(backbone, self._load(backbone)) as spelled:
            [self._spelled] = spelled.values()
            yield

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        if not self.active:
            return conditioning
        prompts = conditioning.prompts or ("",) * len(conditioning)
        words: Mapping[str, Any] = {"token": self._spelled}
        texts = [self.template.format(prompt=prompt, **words).strip() for prompt in prompts]
        return conditioning.with_text(batch.backbone.encode_prompts(texts))
