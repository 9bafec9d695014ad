"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes of two threads each wait for each other, on two cores, ten times longer than they compute.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.sample import SampleSet


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """The embedded backbone, loaded once."""
    from gate.backbones import load_backbone

    return load_backbone("tiny", device="cpu")


@pytest.fixture(scope="session")
def scenes() -> SampleSet:
    """Sixteen held-out scenes."""
    from gate.data import load_data

    return load_data("scenes-held-out", n=16, size=64, seed=0)
