"""Another sample's caption: what a prompt does when it is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gate.errors import UnsuitableError
from gate.techniques.prompt import Prompt

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.request import Batch
    from gate.sample import Sample, SampleSet


@dataclass(kw_only=True)
class ShuffledPrompt(Prompt):
    """`prompt` with captions passed on around a circle of all samples: a negative control (ours).

    The circle is in order of a hash of (seed, sample id), so a sample's caption depends on who else is in the
    run and on nothing else; whoever has the very same caption is skipped. Where no two captions agree this is
    a derangement.
    """

    name = "shuffled-prompt"
    summary = "Denoise under another sample's caption: a negative control."
    source = "ours"
    negative_control = True
    control_of = "prompt"
    compositions = ()

    seed: int = 0

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        super().check(backbone, samples)
        if len({s.caption for s in samples}) < 2:
            raise UnsuitableError(
                f"{self.name} needs samples with different captions.",
                "Screen at least two images, captioned apart.",
            )

    def caption(self, sample: Sample, batch: Batch) -> str:
        return next_caption(sample, batch.everyone or batch.samples, self.seed)


def next_caption(sample: Sample, everyone: Sequence[Sample], seed: int) -> str:
    """The first other caption after `sample` on the circle. Raises UnsuitableError where there is none."""
    circle = sorted({s.id: s for s in everyone}.values(), key=lambda s: _key(seed, s.id))
    after = [s for s in circle if _key(seed, s.id) > _key(seed, sample.id)]
    for other in after + circle:
        if other.caption != sample.caption:
            return other.caption or ""
    raise UnsuitableError("shuffled-prompt needs samples with different captions.")


def _key(seed: int, sample_id: str) -> tuple[bytes, str]:
    return hashlib.blake2b(f"circle:{seed}:{sample_id}".encode(), digest_size=8).digest(), sample_id
