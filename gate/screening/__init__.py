"""The main job: which passes are measured, what becomes of the numbers, and how failures are met."""

from gate.screening.job import levels_text, resume, screen
from gate.screening.outcome import Interrupted, Screening

__all__ = ["Interrupted", "Screening", "levels_text", "resume", "screen"]
