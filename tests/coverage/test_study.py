"""The coverage study counts what it says, and goes on where it stopped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.coverage.__main__ import ROOT, shown
from tests.coverage.draws import rule_of, skewed, truths
from tests.coverage.pool import VANILLA, Numbers


def test_truths_are_of_all_scenes_and_of_the_mean_probe() -> None:
    metrics = ("laplacian-normalised@own", "cosine@own", "cka@own", "eps")

    def numbers(*values: float) -> Numbers:
        return Numbers({m: np.array(values)[:, None] for m in metrics}, np.zeros((2, 1, 1, 1), np.float16))

    pool = {VANILLA: numbers(1.0, 3.0), ("prompt", 0): numbers(2.0, 1.0)}
    done = [
        {"prompt": {"pixel-linear": [gain, 0.0, 1.0], "pixel-brier": [gain / 2, 0.0, 1.0]}}
        for gain in (0.1, 0.3)
    ]
    of_masks, of_none = (sum(weights(64, m).values()) for m in (True, False))
    brier = weights(64, True)["pixel-brier"]
    assert truths(pool, done, ("prompt", 0), 64) == pytest.approx(
        {
            "suppression": 0.25,
            "pixel-linear": 0.2,
            "pixel-brier": 0.1,
            "score": 0.1 * brier + 0.25 * (of_masks - brier),
        }
    )
    assert truths(pool, [{"prompt": {}}], ("prompt", 0), 64) == pytest.approx(
        {"suppression": 0.25, "score": 0.25 * of_none}
    )


def weights(n: int, with_masks: bool) -> dict[str, float]:
    return dict(rule_of(n, with_masks=with_masks).coefficients)


def test_synthetic_errors_are_covered_about_as_often_as_they_should_be() -> None:
    assert 0.9 <= skewed("mild (0.4, 0.15)", 32, 150) / 150 <= 0.99
    assert shown(95, 100) == "95 [89, 98]"


@pytest.mark.slow
def test_the_command_prints_both_tables_and_draws_nothing_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.coverage", "--scenes", "32", "--draws", "2", "--sizes", "8", "16"]
    command += ["--synthetic", "20", "--folder", str(tmp_path)]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert len((tmp_path / "draws-16.jsonl").read_text("utf-8").splitlines()) == 2
    assert re.search(r"^\| prompt: pixel-linear \| - \| \d+ \[\d+, \d+\] \|$", outputs[0], re.MULTILINE)
    assert re.search(r"^\| six equals: some pair told apart \|", outputs[0], re.MULTILINE)
