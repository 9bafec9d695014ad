"""The fitted rules: what a minute's numbers foretell of a head that is trained in full. `gate study` fits them.

They are data (rules.json): for masks, for labels alone, for neither, at several numbers of images, with what they were
fitted on and how often their intervals held the truth on tasks and domains that they were not fitted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from gate.ranking.entry import Rule

FILE = Path(__file__).with_name("rules.json")


class Fitted(BaseModel):
    """One rule at one number of images; see `gate.ranking.entry.Rule`.

    coverage: share of the truths, on tasks and domains left out, that intervals made in the same way held.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int
    coefficients: dict[str, float]
    floor: float
    slope: float
    coverage: float


class Rules(BaseModel):
    """rules.json. rules: by what they need, "masks", "labels" or "", each at ascending n. source: what they are of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    rules: dict[str, tuple[Fitted, ...]]

    def at(self, name: str, n: int) -> Rule:
        """A rule for n images: between two numbers it was fitted at, linear in log n; beyond them, the nearest."""
        fitted = self.rules[name]
        grid = [math.log(f.n) for f in fitted]

        def between(values: list[float]) -> float:
            return float(np.interp(math.log(n), grid, values))

        return Rule(
            name=name,
            coefficients={m: between([f.coefficients[m] for f in fitted]) for m in fitted[0].coefficients},
            floor=between([f.floor for f in fitted]),
            slope=between([f.slope for f in fitted]),
            n=n,
            source=self.source,
        )


@cache
def load_rules(file: Path = FILE) -> Rules:
    """The rules that ship."""
    return Rules.model_validate(json.loads(file.read_text(encoding="utf-8")))


def choose_rule(rules: Rules, told: Collection[str], n: int) -> Rule | None:
    """The first rule all of whose measures are told; None where there is none.

    told: names of the metrics that were measured, and of the probes that read more than chance.
    """
    for name, fitted in rules.rules.items():
        if set(fitted[0].coefficients) <= set(told):
            return rules.at(name, n)
    return None
