"""Why a technique's numbers do not count as they stand: what its features lost, what it was not given and has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gate.carried import Carried, Unseen
from gate.ranking.entry import Evidence
from gate.screening.attempt import VANILLA
from gate.screening.measured import Measured

OWN = "@own"


@dataclass(frozen=True)
class Doubt:
    """degenerate: what its features lost, so that closeness to its own reference does not count; leak: declared, or
    found; truth: what it is given of that which probes judge by. All "" or empty where there is no doubt.

    carried: its features' spread, breadth and image over vanilla's, the least over timesteps.
    """

    degenerate: str
    leak: str
    truth: tuple[str, ...]
    carried: Mapping[str, float]


def doubt(technique: Any, measured: Measured, vanilla: Measured) -> Doubt:
    """Of one technique. A declared leak starts elsewhere than vanilla, so its features need not be like vanilla's: its
    probe alone speaks for it anyway."""
    pairs = [*zip(_carried(measured), _carried(vanilla), strict=True)]
    leak, unseen = technique.leak, measured.unseen
    if not leak and unseen is not None and (told := Unseen(*map(float, unseen)).told()):
        leak = f"found, not declared: of an image that was not in the latent, {told}"
    lost = [text for ours, theirs in pairs if (text := ours.lacking(theirs))]
    names = [f.name for f in dataclasses.fields(Carried)]
    shares = {
        n: min((getattr(a, n) / getattr(b, n) for a, b in pairs if getattr(b, n)), default=1.0) for n in names
    }
    return Doubt(lost[0] if lost and not technique.leak else "", leak, technique.truth, shares)


def _carried(measured: Measured) -> list[Carried]:
    return (
        [] if measured.carried is None else [Carried(*row) for row in measured.carried.astype(float).tolist()]
    )


def counting(evidence: Mapping[str, Evidence], doubts: Mapping[str, Doubt]) -> dict[str, Evidence]:
    """What counts: a degenerate technique is as far from its own reference as vanilla from its own, no nearer."""
    own = {k: v for k, v in evidence[VANILLA].shifts.items() if k.endswith(OWN)}
    return {
        name: dataclasses.replace(found, shifts={**found.shifts, **own})
        if name in doubts and doubts[name].degenerate
        else found
        for name, found in evidence.items()
    }


def doubt_notes(doubts: Mapping[str, Doubt]) -> list[str]:
    """A sentence each, for those that the ranking would otherwise flatter."""
    notes = [
        f"{name!r} is degenerate: its features no longer carry the image ({d.degenerate}), so closeness to its own "
        "reference does not count, and it cannot win."
        for name, d in doubts.items()
        if d.degenerate
    ]
    notes += [
        f"{name!r} leaks and does not say so ({d.leak.partition(': ')[2]}): it wins by its probe or not at all."
        for name, d in doubts.items()
        if d.leak.startswith("found")
    ]
    notes += [
        f"{name!r} is given the {' and '.join(d.truth)} that probes judge by, so it cannot win."
        for name, d in doubts.items()
        if d.truth
    ]
    return notes
