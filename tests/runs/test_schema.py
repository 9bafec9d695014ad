"""results.json: old versions are read, foreign and damaged ones refused in a sentence, arrays held to their axes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated_run import fabricate
from typer.testing import CliRunner

from gate.cli import app
from gate.errors import DamagedError, GateError
from gate.report.table import ranking_csv, ranking_text
from gate.runs.directory import Run, open_run, write_arrays
from gate.runs.schema import SCHEMA_VERSION, Results, read_results

GOLDEN = Path(__file__).with_name("golden")


def first() -> Any:
    return json.loads((GOLDEN / "results-1.json").read_text(encoding="utf-8"))


def test_version_1_is_read_as_if_written_today() -> None:
    old, read = first(), read_results(first(), "results.json")
    assert old["schema_version"] == 1 and read.schema_version == SCHEMA_VERSION
    assert (
        [r.negative_control for r in read.ranking] == [r["control"] for r in old["ranking"]] == [False, True]
    )
    image = read.ranking[0].images["image"]
    assert image is not None and image.value == old["ranking"][0]["image"]["value"]
    assert "† negative control" in ranking_text(read)
    assert "negative_control" in ranking_csv(read).splitlines()[0].split(",")


@pytest.mark.parametrize(
    ("version", "told"), [(SCHEMA_VERSION + 1, "newer gate"), (0, "no gate can read"), ("2", "is damaged")]
)
def test_other_versions_are_refused(version: Any, told: str) -> None:
    with pytest.raises(GateError, match=told):
        read_results({**first(), "schema_version": version}, "results.json")


def test_damage_is_one_sentence_that_names_the_place() -> None:
    broken = first()
    del broken["ranking"][1]["score"]
    told = r"damaged \(ranking\.1\.score: Field required\); make it anew: gate resume \.$"
    with pytest.raises(DamagedError, match=told):
        read_results(broken, "results.json")
    for value in ([], {}, {**first(), "ranking": 3}, {"schema_version": 1}):
        with pytest.raises(DamagedError, match="damaged"):
            read_results(value, "results.json")


def test_what_is_written_is_what_is_read_and_unknown_fields_are_ignored(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    raw = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
    assert Results.model_validate({**raw, "later": 1}) == run.results
    dumped = {
        **run.results.model_dump(mode="json"),
        "digest": run.results.digest,
    }  # a seal is of the file alone
    assert Results.model_validate(dumped) == run.results


def test_arrays_that_are_of_another_run_are_refused(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    arrays = dict(run.arrays)
    file, narrow = run.path / "scores.safetensors", arrays["prediction/eps"][:, :1]
    write_arrays(file, {**arrays, "prediction/eps": narrow})
    with pytest.raises(DamagedError, match=r"not the file that results\.json was made from"):
        open_run(run.path)
    old = run.results.model_copy(update={"hashes": {}, "digest": ""})  # as before there were checksums
    with pytest.raises(DamagedError, match=r"prediction/eps has shape .* axes of results\.json say"):
        _ = Run(run.path, old).arrays
    wider = np.repeat(arrays["prediction/eps"][..., None], 3, axis=-1)
    write_arrays(file, {**arrays, "prediction/eps": wider})
    assert Run(run.path, old).arrays["prediction/eps"].shape[-1] == 3  # a measure's own columns


def test_the_schema_is_printed_as_json() -> None:
    done = CliRunner().invoke(app, ["schema"])
    schema = json.loads(done.stdout)
    assert done.exit_code == 0 and set(schema["required"]) >= {"schema_version", "ranking", "axes"}
    assert "negative_control" in schema["$defs"]["Row"]["properties"]
