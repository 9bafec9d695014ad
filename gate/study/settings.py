"""A study's settings from what a command was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gate.errors import UsageError
from gate.names import split_names
from gate.registry import select_techniques
from gate.study.plan import MINIATURE, VANILLA, StudySettings


def settings_from(given: Mapping[str, str], *, miniature: bool = False) -> StudySettings:
    """given: texts of `domains`, `timesteps` and `techniques`, where they were given. Raises UsageError."""
    values: dict[str, Any] = dict(MINIATURE) if miniature else {}
    if "domains" in given:
        values["domains"] = tuple(split_names(given["domains"]))
    if "timesteps" in given:
        values["timesteps"] = _timesteps(given["timesteps"])
    if "techniques" in given:
        names = [n for n in split_names(given["techniques"]) if n != VANILLA]
        values["techniques"] = (VANILLA, *(select_techniques(names) if names else ()))
    return StudySettings(**values)


def _timesteps(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and 1 <= int(part) < 1000 for part in parts) or len(set(parts)) != len(parts):
        raise UsageError(f"--timesteps takes distinct numbers of 1 to 999 with commas between, not {text!r}.")
    return tuple(int(part) for part in parts)
