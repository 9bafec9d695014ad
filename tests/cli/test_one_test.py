"""What a screening says of order, ties, stars and intervals fits together, in the file and through the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gate.cli import app
from gate.runs.directory import open_run
from gate.screening import Screening

ASKED = "screen --techniques freeu,prompt,shuffled-prompt,guidance-fdg --samples 16 --seeds 1 --timesteps 50"


@pytest.mark.slow
def test_order_ties_star_interval_and_p_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Screening, "plot", lambda self: [])  # figures have their own tests
    folder = str(tmp_path / "run")
    settings = ["--image-samples", "0", "--output", folder, "--format", "json"]
    made = CliRunner().invoke(app, [*ASKED.split(), *settings])
    assert made.exit_code == 0, made.output
    again = json.loads(CliRunner().invoke(app, ["rank", folder, "--format", "json"]).stdout)
    rows = again["ranking"]
    assert rows == json.loads(made.stdout)["ranking"] and len(rows) == 4

    shown = [round(100 * row["score"], 1) for row in rows]
    assert shown == sorted(shown, reverse=True)
    assert [row["rank"] for row in rows] == [1 + sum(other > x for other in shown) for x in shown]
    for row in rows:
        outside = row["ci_low"] > 0 or row["ci_high"] < 0
        assert outside == (row["p"] <= 0.05)
        assert (row["verdict"] != "none") == (row["p_holm"] <= 0.05) and row["p"] <= row["p_holm"]
    for a, b in itertools.combinations(rows, 2):
        tied = b["name"] in a["tied_with"]
        assert tied == (a["name"] in b["tied_with"]) == bool(set(a["letters"]) & set(b["letters"]))
    assert all(row["letters"] for row in rows)

    refits = open_run(Path(folder)).arrays["refit/pixel-linear"]
    assert refits.shape == (5, 1, 1, 16) and np.abs(refits).max(axis=-1).min() > 0  # vanilla and four
