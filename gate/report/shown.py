"""A run's results as they may be shown: names of strangers, files and captions are text, and no terminal obeys them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gate.names import harmless

if TYPE_CHECKING:
    from gate.runs.schema import Results


def shown(results: Results) -> Results:
    """The same results with every text on one line and without control characters."""
    return type(results).model_validate(_each(results.model_dump()))


def _each(value: Any) -> Any:
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {_each(k): _each(v) for k, v in value.items()}
    return [_each(v) for v in value] if isinstance(value, (list, tuple)) else value
