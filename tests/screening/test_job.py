"""The main job end to end on the embedded backbone, small: determinism, batches, failures, interruption, folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gate.screening.measure
from gate.data import load_data
from gate.errors import ConfigurationError, UsageError
from gate.registry import create_technique
from gate.runs.directory import open_run
from gate.runs.schema import SCHEMA_VERSION
from gate.screening import Interrupted, Screening, resume, screen
from gate.screening.bench import open_bench
from gate.screening.config import make_config
from gate.screening.measure import measure as measure_alone

SMALL: dict[str, Any] = {
    "techniques": ("prompt", "freeu"),
    "samples": 16,
    "seeds": 1,
    "timesteps": (50,),
    "image_samples": 2,
    "image_steps": 2,
    "resamples": 200,
    "workers": 1,
}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have their own tests."""
    monkeypatch.setattr(Screening, "plot", lambda self: [])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Screening:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Screening, "plot", lambda self: [])
        return screen(**SMALL, output=str(tmp_path_factory.mktemp("run") / "a"))


def test_results_hold_what_readers_rely_on(done: Screening) -> None:
    results = done.results
    assert results["schema_version"] == SCHEMA_VERSION and done.exit_code == 0
    keys = {
        "name",
        "rank",
        "score",
        "ci_low",
        "ci_high",
        "n",
        "suppression",
        "probes",
        "cost",
        "tied_with",
        "negative_control",
    }
    assert all(keys <= set(type(entry).model_fields) for entry in results["ranking"])
    assert {e["name"] for e in results["ranking"]} == {"prompt", "freeu"}
    assert all(e["ci_low"] <= e["score"] <= e["ci_high"] and e["n"] == 16 for e in results["ranking"])
    assert results["hashes"]["weights"] and results["hashes"]["samples"]
    assert results["config"]["samples"] == 16 and results["environment"]["versions"]["torch"]
    assert results["environment"]["family"] == "unet"  # "recorded" where none of ours serves
    assert results["axes"]["technique"][0] == "vanilla"


def test_arrays_have_the_axes_of_the_results(done: Screening) -> None:
    run = open_run(done.path)
    axes = run.results["axes"]
    techniques, n = len(axes["technique"]), len(axes["sample"])
    shape = (techniques, len(axes["timestep"]), len(axes["seed"]), len(axes["layer"]), n)
    assert run.arrays["shift/laplacian"].shape == shape == run.arrays["shift/cka@own"].shape
    assert run.arrays["prediction/eps"].shape == (*shape[:3], n)
    k = len(axes["mask_classes"])
    assert run.arrays["probe/pixel-linear"].shape == (*shape[:3], n, k, k)
    assert run.arrays["image/image"].shape == (techniques, 2)
    assert all(np.isfinite(a).all() for a in run.arrays.values())
    assert run.pictures["reconstruction"].shape[:2] == (techniques, 2)
    assert not (done.path / "parts").exists()


def test_two_runs_with_one_seed_give_identical_numbers(done: Screening, tmp_path: Path) -> None:
    again = screen(**SMALL, output=str(tmp_path / "b"))
    ours, theirs = open_run(done.path).arrays, open_run(again.path).arrays
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    scores = [[(e["name"], e["score"], e["ci_low"]) for e in r.results["ranking"]] for r in (done, again)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_batch_sizes_one_and_eight_agree(tmp_path: Path) -> None:
    runs = [screen(**{**SMALL, "samples": 14}, batch_size=b, output=str(tmp_path / str(b))) for b in (1, 8)]
    one, eight = (open_run(r.path).arrays for r in runs)
    for key in one:
        if key.startswith(("shift", "prediction", "image")):
            scale = np.abs(one[key]).max()
            np.testing.assert_allclose(one[key] / scale, eight[key] / scale, rtol=0, atol=1e-5, err_msg=key)


def test_a_bench_is_made_again_from_its_configuration_alone(done: Screening) -> None:
    """As a process elsewhere would: out of the JSON in run.json, and nothing else."""
    config = make_config(json.loads((done.path / "run.json").read_text(encoding="utf-8"))["config"])
    found = measure_alone(open_bench(config), create_technique("prompt"))
    arrays = open_run(done.path).arrays
    row = done.results.axes.technique.index("prompt")
    for key, values in found.shift.items():
        assert np.array_equal(values, arrays[f"shift/{key}"][row]), key
    for key, values in found.counts.items():
        assert np.array_equal(values, arrays[f"probe/{key}"][row]), key


def test_worker_processes_give_the_same_numbers(done: Screening, tmp_path: Path) -> None:
    settings = {**SMALL, "workers": 2}
    twice = [open_run(screen(**settings, output=str(tmp_path / name)).path).arrays for name in "ab"]
    alone = open_run(done.path).arrays
    for key in alone:
        assert np.array_equal(twice[0][key], twice[1][key])
        if key.startswith(("shift", "prediction", "image")):
            scale = np.abs(alone[key]).max()
            np.testing.assert_allclose(
                alone[key] / scale, twice[0][key] / scale, rtol=0, atol=1e-5, err_msg=key
            )


def test_a_failing_technique_is_recorded_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gate.screening.measure.measure

    def measure(bench: Any, technique: Any, *args: Any, **options: Any) -> Any:
        if technique.name == "freeu":
            raise RuntimeError("boom")
        return real(bench, technique, *args, **options)

    monkeypatch.setattr(gate.screening.measure, "measure", measure)
    result = screen(**SMALL, output=str(tmp_path / "run"))
    assert result.exit_code == 7
    assert [e["name"] for e in result.results["ranking"]] == ["prompt"]
    (skipped,) = result.results["skipped"]
    assert skipped["name"] == "freeu" and "boom" in skipped["reason"] and skipped["failed"]


def test_an_interrupted_run_keeps_what_is_finished_and_resumes(
    done: Screening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = gate.screening.job.append_journal, []

    def journal(folder: Path, **entry: Any) -> None:
        real(folder, **entry)
        seen.append(entry["name"])
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(gate.screening.job, "append_journal", journal)
    with pytest.raises(Interrupted) as stop:
        screen(**SMALL, output=str(tmp_path / "run"))
    with pytest.raises(UsageError, match="gate resume"):
        open_run(stop.value.run)
    resumed = resume(stop.value.run)
    assert sorted(seen) == ["freeu", "prompt", "vanilla"]  # nobody is measured twice
    ours, theirs = open_run(done.path).arrays, open_run(resumed.path).arrays
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)


def test_unlabelled_images_are_ranked_by_shift_alone_and_captioned_techniques_are_skipped(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, sample in enumerate(load_data("scenes-trained", n=8, size=64, seed=3)):
        Image.fromarray(sample.image).resize((96, 80)).save(folder / f"{i}.png")
    notices: list[str] = []
    settings = {**SMALL, "techniques": ("prompt", "freeu", "shared-timestep")}
    result = screen(**settings, images=str(folder), output=str(tmp_path / "run"), log=notices.append)
    assert result.results["basis"] == "shift only"
    assert [s["name"] for s in result.results["skipped"]] == ["prompt"]
    assert "caption" in result.results["skipped"][0]["reason"]
    assert any("suppression alone" in note for note in result.results["notes"])
    assert any("probe pixel-linear is left out" in text for text in notices)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"techniques": ("freu",)}, UsageError, "Did you mean 'freeu'"),
        ({"layers": ("up9",)}, UsageError, "Unknown layer 'up9'"),
        ({"metrics": ("laplace",)}, UsageError, "Did you mean 'laplacian'"),
        ({"backbone": "tinny"}, UsageError, "Unknown backbone 'tinny'"),
        ({"samples": 3}, UsageError, "samples"),
        ({"timesteps": (5000,)}, UsageError, "Timestep 5000"),
        ({"timesteps": (50, 50)}, UsageError, "distinct"),
        ({"nonsense": 1}, UsageError, "nonsense"),
        ({"images": "/does/not/exist"}, UsageError, "does/not/exist"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_no_directory(
    settings: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(error, match=text):
        screen(**{**SMALL, **settings}, output=str(output))
    assert not output.exists()


def test_an_existing_directory_is_never_touched(done: Screening, tmp_path: Path) -> None:
    before = (done.path / "results.json").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        screen(**SMALL, output=str(done.path))
    assert (done.path / "results.json").read_bytes() == before


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((ConfigurationError, UsageError), match="cannot be written|exists already"):
        screen(**SMALL, output=str(tmp_path / "file" / "run"))


def test_nan_in_features_fails_that_technique_with_its_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate.techniques.freeu import FreeU

    def broken(self: Any, request: Any, call_next: Any) -> Any:
        return call_next(request.with_(x_t=request.x_t * float("nan")))

    monkeypatch.setattr(FreeU, "denoise", broken)
    result = screen(**SMALL, output=str(tmp_path / "run"))
    assert "NaN or infinity" in result.results["skipped"][0]["reason"]


def test_resuming_with_other_images_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = {**SMALL, "techniques": ["freeu"]}
    content = {"config": config, "hashes": {"weights": "other", "samples": "other"}}
    (run / "run.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="have changed"):
        resume(run)
