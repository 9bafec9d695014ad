"""The checkout's own `benchmarks`: scripts, which no wheel holds."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: `gate` itself comes from where it is installed
