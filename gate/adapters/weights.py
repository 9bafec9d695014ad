"""Techniques that take weights: looked for when they are checked, so that what lacks is a reason to skip them."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gate.errors import MissingWeightsError, UnsuitableError
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet


@dataclass(kw_only=True)
class TakesWeights(Technique):
    """Says in `_load` how its weights are found; weights that are not there are a reason, with its remedy."""

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        super().check(backbone, samples)
        try:
            self._load(backbone)
        except MissingWeightsError as error:
            raise UnsuitableError(error.reason, error.fix) from error

    def fit(self, backbone: Backbone, samples: SampleSet) -> None:
        self._load(backbone)

    @abc.abstractmethod
    def _load(self, backbone: Backbone) -> Any:
        """The weights, once; nothing where the settings are neutral. Raises MissingWeightsError, ConfigurationError."""


@dataclass(kw_only=True)
class TakesFile(TakesWeights):
    """One whose weights are one file: `weights`, a safetensors file, a folder or a hub id, "" for the backbone's own;
    `weight_name`, the file in a folder or repository."""

    weights: str = ""
    weight_name: str = ""


def unfitted(technique: Technique, what: str, backbone: Backbone, place: str) -> MissingWeightsError:
    """That nothing was fitted to a backbone, with the commands that do it. place: stands for the folder of the fit."""
    name = technique.name
    return MissingWeightsError(
        f"{name} has no {what} for {backbone.name}.",
        f"Fit one: gate fit {name} --backbone {backbone.name} --images DIR --output {place}; then screen "
        f"'{name}[weights={place}]'.",
    )
