"""The embedded default: scenes of 3D emoji art and a small, real latent diffusion pipeline trained on them.

Importing this package imports neither torch nor diffusers; `gate.tiny.scenes` needs numpy and Pillow only.
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # a diffusers pipeline folder
