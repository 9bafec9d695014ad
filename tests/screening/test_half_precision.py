"""The ranking of `tiny`, with trained weights, in bfloat16 against float32: outside the intervals it is the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import gate
from gate.runs.schema import Results, Row

TECHNIQUES = (
    "caption,prompt,generic-prompt,shuffled-prompt,noise-ensemble,timestep-ensemble,cleandift,freeu,guidance"
)


def ranked(dtype: str, folder: Path) -> Results:
    return gate.screen(
        TECHNIQUES, samples=32, dtype=dtype, probes="", image_samples=0, output=str(folder / dtype)
    ).results


def apart(a: Row, b: Row) -> bool:
    """Whether a's interval lies above b's."""
    assert a.ci_low is not None and b.ci_high is not None
    return a.ci_low > b.ci_high


@pytest.mark.slow
def test_no_pair_that_intervals_separate_changes_its_order(tmp_path: Path) -> None:
    runs = [ranked(dtype, tmp_path) for dtype in ("float32", "bfloat16")]
    rows = [{row.name: row for row in run.ranking} for run in runs]
    assert rows[0].keys() == rows[1].keys() and len(rows[0]) >= 8
    for one, other in (rows, rows[::-1]):
        pairs = [(a, b) for a, b in itertools.permutations(one, 2) if apart(one[a], one[b])]
        print(f"{len(pairs)} of {len(one) * (len(one) - 1) // 2} pairs lie apart")
        assert len(pairs) >= 10  # or nothing is compared
        turned = [(a, b) for a, b in pairs if (other[a].score or 0) <= (other[b].score or 0)]
        assert not turned
        told = [
            (a, b) for a, b in itertools.permutations(one, 2) if _above(one, a, b) and _above(other, b, a)
        ]
        assert not told, "one run tells them apart one way, and the other the other way"
    moved = [abs((rows[0][name].score or 0) - (rows[1][name].score or 0)) for name in rows[0]]
    print(f"the score moves by at most {max(moved):.4f}")
    halves = [((row.ci_high or 0) - (row.ci_low or 0)) / 2 for row in rows[0].values()]
    assert max(moved) < max(halves)  # half precision says less than the samples leave open


def _above(rows: dict[str, Row], a: str, b: str) -> bool:
    """Whether a is told to be better than b, by the paired comparison."""
    return b not in rows[a].tied_with and rows[a].rank < rows[b].rank
