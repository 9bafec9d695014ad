"""Fitting the small networks that techniques need: `gate fit NAME --images DIR --output DIR`.

`loop` trains, checkpoints and judges; each trainer says what is trained, by which loss, and how it is stored.
"""

from gate.fit.config import FitConfig, make_fit_config
from gate.fit.loop import FitInterrupted, Fitted, fit

__all__ = ["FitConfig", "FitInterrupted", "Fitted", "fit", "make_fit_config"]
