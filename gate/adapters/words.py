"""New words in a backbone's vocabulary for a while (textual inversion)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gate.backbones.hush import hushed
from gate.errors import UsageError

if TYPE_CHECKING:
    from gate.backbone import Backbone


@contextlib.contextmanager
def with_words(backbone: Backbone, words: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    """Copies of tokenizer and text encoder that know some words stand in for the backbone's own.

    words: {token: (d,) or (k, d)}, loaded by diffusers. Yields {token: how a prompt spells it}: a word of k vectors
    is k tokens. Raises UsageError for a token that is a word already.
    """
    tokenizer, encoder = copy.deepcopy(backbone.tokenizer), copy.deepcopy(backbone.components["text_encoder"])
    spelled = add_words(tokenizer, encoder, words)
    with backbone.prompts_anew(tokenizer, encoder):
        yield spelled


def add_words(tokenizer: Any, encoder: Any, words: Mapping[str, Tensor]) -> dict[str, str]:
    """Teach them to a tokenizer and a text encoder, in place; {token: how a prompt spells it}."""
    from diffusers.loaders import TextualInversionLoaderMixin

    class Host(TextualInversionLoaderMixin):  # type: ignore[misc]
        """What diffusers' loader wants of a pipeline."""

        hf_device_map = None
        components: dict[str, Any] = {}  # noqa: RUF012

    host = Host()
    try:
        with hushed():  # it explains at length how it fills the rows that are then overwritten
            for token, vectors in words.items():
                own = vectors.to(encoder.device, encoder.dtype)
                host.load_textual_inversion({token: own}, tokenizer=tokenizer, text_encoder=encoder)
    except ValueError as error:
        raise UsageError(f"The word cannot be added: {error}") from error
    encoder.requires_grad_(False)
    return {token: str(host.maybe_convert_prompt(token, tokenizer)) for token in words}
