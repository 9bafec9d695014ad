"""The main job: which passes are measured, what becomes of the numbers, and how failures are met."""

from gate.screening.job import Interrupted, Screening, levels_text, resume, screen

__all__ = ["Interrupted", "Screening", "levels_text", "resume", "screen"]
