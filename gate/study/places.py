"""Cells put together: all techniques at one timestep of one domain, with what other domains share with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gate.study.cell import Cell
from gate.study.plan import VANILLA, find_domain

SEARCHED = "prompt-search"  # what `prompt` is under captions that a search wrote
SEARCH_CALLS = 36.0
LEAST = 3  # techniques without which an order means nothing


@dataclass(frozen=True, eq=False)
class Place:
    """family: domains of the same images, which are left out together. cells: by technique, vanilla apart."""

    domain: str
    family: str
    timestep: int
    vanilla: Cell
    cells: dict[str, Cell]

    @property
    def techniques(self) -> tuple[str, ...]:
        return tuple(self.cells)


def places_of(cells: Sequence[Cell]) -> list[Place]:
    """Every place with vanilla and three techniques or more, by domain and timestep.

    A domain that differs from its base by captions alone takes the base's cells of techniques that read none; the base
    takes the searched domain's `prompt` as `prompt-search`.
    """
    own: dict[tuple[str, int], dict[str, Cell]] = {}
    for cell in cells:
        own.setdefault((cell.key.domain, cell.key.timestep), {})[cell.key.technique] = cell
    found = []
    for (name, t), held in sorted(own.items()):
        domain = find_domain(name)
        every = {**own.get((domain.base, t), {}), **held} if domain.base else dict(held)
        found_captions = own.get(("searched", t), {}).get("prompt")
        if name == find_domain("searched").base and found_captions is not None:
            every[SEARCHED] = found_captions
        vanilla = every.pop(VANILLA, None)
        if vanilla is not None and len(every) >= LEAST:
            found.append(Place(name, domain.base or name, t, vanilla, dict(sorted(every.items()))))
    return found


def calls_of(place: Place, technique: str) -> float:
    """Denoiser calls per image."""
    return place.cells[technique].calls + (SEARCH_CALLS if technique == SEARCHED else 0.0)
