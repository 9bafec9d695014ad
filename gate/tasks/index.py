"""Tasks by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from gate.errors import UsageError, known_settings, unknown_name
from gate.names import parse_name
from gate.tasks.classification import Classification, MlpClassification
from gate.tasks.correspondence import ConvCorrespondence, Correspondence
from gate.tasks.scarce import ScarceSegmentation
from gate.tasks.segmentation import LinearSegmentation, Segmentation
from gate.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Correspondence,
        ConvCorrespondence,
        ScarceSegmentation,
        Segmentation,
        LinearSegmentation,
        Classification,
        MlpClassification,
    )
}


def find_task(name: str) -> type[Task]:
    """The class of a name. Raises UsageError for an unknown one."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS, listing="gate list tasks")
    return TASKS[name]


def create_task(name: str, **settings: Any) -> Task:
    """A task by name, settings in brackets: `segmentation[epochs=4,width=64]`, or as keywords."""
    head, given = parse_name(name)
    cls = find_task(head)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    chosen = known_settings({**given, **settings}, fields, listing=f"gate describe {head}")
    for key, value in chosen.items():
        wanted = type(fields[key].default)
        if key == "stem":
            continue
        if wanted is tuple and isinstance(value, (tuple, list)) and all(type(v) is int for v in value):
            chosen[key] = tuple(value)
            continue
        if wanted is float and type(value) is int:
            chosen[key] = value = float(value)
        if wanted in (int, float, tuple) and type(value) is not wanted:
            raise UsageError(f"Setting {key!r} of {head} is {wanted.__name__}, not {value!r}.")
    return cls(**chosen)
