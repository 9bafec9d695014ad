"""Numbers that the documents state are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from gate.screening.config import ScreenConfig

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reconstructions_of_metrics_md_are_the_defaults() -> None:
    text = " ".join((DOCS / "metrics.md").read_text(encoding="utf-8").split())
    stated = re.search(
        r"strength ([\d.]+) in (\d+) deterministic DDIM steps, on the first (\d+) samples", text
    )
    config = ScreenConfig()
    assert stated and (float(stated[1]), int(stated[2]), int(stated[3])) == (
        config.strength, config.image_steps, config.image_samples,
    )  # fmt: skip
    folds = re.search(r"samples themselves, in (\d+) folds", text)
    assert folds and int(folds[1]) == config.folds
    resamples = re.search(r"(\d+) times, `--resamples`", text)
    assert resamples and int(resamples[1]) == config.resamples


def test_the_tests_that_systems_md_names_exist() -> None:
    text = (DOCS / "systems.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for file, name in named:
        assert f"\ndef {name}(" in (DOCS.parent / file).read_text(encoding="utf-8"), f"{file}::{name}"
