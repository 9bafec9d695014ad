"""Fitting the small networks that techniques need: `gate fit NAME --images DIR --output DIR`.

`loop` trains, checkpoints and judges; each trainer says what is trained, by which loss, and how it is stored.
The loop is imported on first use, so that settings and paths are checked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gate.fit.config import FitConfig, make_fit_config
from gate.fit.inputs import check_inputs

if TYPE_CHECKING:
    from gate.fit.loop import FitInterrupted, Fitted, fit

__all__ = ["FitConfig", "FitInterrupted", "Fitted", "check_inputs", "fit", "make_fit_config"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gate.fit' has no attribute {name!r}")
    from gate.fit import loop

    return getattr(loop, name)
