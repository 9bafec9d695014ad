"""A run's files as the numbers of its techniques again: results.json can be made anew, and a run measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gate.errors import DamagedError
from gate.runs.directory import PICTURES, SCORES, SCREEN, read_arrays
from gate.runs.parts import has_part, save_part
from gate.runs.seal import SEAL
from gate.runs.states import STATES, parted
from gate.screening.measured import COSTS, SOME, TABLES, Measured


def costs(measured: Mapping[str, Measured]) -> str:
    """What the techniques cost, as text. It lies beside the arrays, in their order: equal runs have equal arrays."""
    return json.dumps({name: [getattr(m, cost) for cost in COSTS] for name, m in measured.items()})


def unpack(
    costs: str,
    scores: Mapping[str, NDArray[Any]],
    pictures: Mapping[str, NDArray[Any]],
    states: Mapping[str, Mapping[str, NDArray[Any]]],
) -> dict[str, Measured]:
    """The numbers of each technique, by name, out of a run's arrays: `results.assemble` the other way round.

    states: {technique: {key: array}}, of those that have a state.
    """
    found = {}
    for i, (technique, cost) in enumerate(json.loads(costs).items()):
        m = found[technique] = Measured(**dict(zip(COSTS, cost, strict=True)))
        for key, values in scores.items():
            head, _, name = key.partition("/")
            if head in TABLES:
                getattr(m, TABLES[head])[name] = values[i]
        m.state = dict(states.get(technique, {}))
        m.scale = scores["feature-scale"][i]
        for kind in SOME:
            there = kind in scores and not np.isnan(scores[kind][i]).all()
            setattr(m, kind, scores[kind][i] if there else None)
        m.reconstructions = pictures["reconstruction"][i] if "reconstruction" in pictures else None
        m.pca = pictures["pca"][i] if "pca" in pictures else None
    return found


def unpack_scores(folder: Path, mark: str) -> None:
    """Where all is measured and results.json is not there, or no longer: make parts of what the scores hold."""
    if not (folder / SCORES).is_file():
        return
    scores, facts = read_arrays(folder / SCORES)
    pictures = read_arrays(folder / PICTURES)[0] if (folder / PICTURES).is_file() else {}
    learned, said = read_arrays(folder / STATES) if "states" in facts else ({}, {})
    if facts.get("mark") != mark:
        told = "were measured with other settings than run.json says" if facts else "carry no checksum"
        raise DamagedError(f"The scores of {folder} {told}; screen again.")
    if said.get(SEAL) != facts.get("states"):
        raise DamagedError(f"{folder / STATES} is not the file that the scores were written with; {SCREEN}.")
    states = parted(learned, json.loads(facts["techniques"]))
    for name, part in unpack(facts["techniques"], scores, pictures, states).items():
        if not has_part(folder, name):
            save_part(folder, name, part, mark)
