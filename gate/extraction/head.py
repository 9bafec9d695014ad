"""An amalgamation that `gate task` trained, as what is extracted: several techniques in, one feature out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gate.errors import IncomparableError
from gate.registry import create_technique
from gate.tasks.amalgamation import Amalgam, load_amalgam
from gate.tasks.features import Source, gather
from gate.technique import Cost, Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet

NAME = "amalgamation"


@dataclass(frozen=True)
class Saved:
    """A head's file, read. sources, layers, unweighted: as it was trained. weights: the backbone's fingerprint."""

    file: Path
    amalgam: Amalgam
    sources: tuple[Source, ...]
    states: tuple[dict[str, Tensor], ...]
    layers: tuple[str, ...]
    unweighted: tuple[str, ...]
    weights: str
    backbone: str
    image_size: int
    seed: int


def open_head(file: Path) -> Saved:
    """Raises UsageError where there is no such file, ConfigurationError where it holds no amalgamation."""
    amalgam, facts, states = load_amalgam(file)
    return Saved(
        file,
        amalgam,
        tuple(Source(**source) for source in facts["sources"]),
        states,
        tuple(facts["layers"]),
        tuple(facts["unweighted"]),
        facts["weights"],
        facts["backbone"],
        facts["image_size"],
        facts["seed"],
    )


@dataclass(kw_only=True)
class Amalgamated(Technique):
    """Stands among techniques for all of a head's. It steers nothing itself: its features come from `features`."""

    saved: Saved = dataclasses.field(repr=False)
    parts: tuple[Technique, ...] = ()

    name = NAME
    summary = "Several techniques' features, weighed by a trained head"
    source = "GATE, section 5.4"

    @classmethod
    def opened(cls, saved: Saved, backbone: Backbone, samples: SampleSet) -> Amalgamated:
        """With each technique as it was when the head was trained. samples: the first that are extracted.

        Raises IncomparableError where the backbone has other weights, UnsuitableError where a technique cannot serve.
        """
        found = backbone.fingerprint()
        if found != saved.weights:
            raise IncomparableError(
                f"The weights of {backbone.name} ({found}) are not those that {saved.file} was trained on "
                f"({saved.weights}); load the same ones, or train a head on these."
            )
        parts = []
        for source, state in zip(saved.sources, saved.states, strict=True):
            technique = create_technique(source.technique) if source.technique else Technique()
            technique.check(backbone, technique.visible(samples))
            technique.load_state(state)
            parts.append(technique)
        return cls(saved=saved, parts=tuple(parts))

    @property
    def cost(self) -> Cost:
        """Of all its techniques together."""
        return Cost(
            per_image=sum(part.cost.per_image for part in self.parts),
            per_pass=sum(part.cost.per_pass for part in self.parts),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made of."""
        return {"sources": [dataclasses.asdict(source) for source in self.saved.sources]}

    def state(self) -> dict[str, Tensor]:
        """The head's weights, and what each technique had learned."""
        learned = {
            f"technique{i}.{key}": value
            for i, state in enumerate(self.saved.states)
            for key, value in state.items()
        }
        return {**self.saved.amalgam.state_dict(), **learned}

    @torch.no_grad()
    def features(
        self,
        backbone: Backbone,
        samples: SampleSet,
        batch: int,
        x0: Tensor | None,
        seed: int,
        shrink: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The amalgam's layers, (n, c, h, w) float32. x0: latents, encoded where None. shrink: what becomes of each
        batch of them."""
        made: dict[str, list[Tensor]] = {}
        for start in range(0, len(samples), batch):
            rows = slice(start, start + batch)
            parts = [
                (source, part, self.saved.unweighted if i == 0 else ())
                for i, (source, part) in enumerate(zip(self.saved.sources, self.parts, strict=True))
            ]
            raw = gather(
                backbone,
                parts,
                samples,
                layers=self.saved.layers,
                amalgamated=True,
                seed=seed,
                batch_size=batch,
                tick=lambda _: None,
                x0=x0,
                rows=rows,
            )
            for layer, value in shrink(self.saved.amalgam(raw)).items():
                made.setdefault(layer, []).append(value.cpu())
        return {layer: torch.cat(values) for layer, values in made.items()}
