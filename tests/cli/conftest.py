from __future__ import annotations

from pathlib import Path

import pytest
from fabricated_run import fabricate

from gate.runs.directory import Run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A complete run: probes, images, controls, a leak, ties, a collapse."""
    folder: Path = tmp_path_factory.mktemp("runs") / "complete"
    return fabricate(folder)
