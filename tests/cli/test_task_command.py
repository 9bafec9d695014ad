"""`gate task` through the real command: what it prints and keeps, what it refuses, how it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import public_layouts as layouts
import pytest
import torch
from typer.testing import CliRunner

import gate
from gate.cli import app
from gate.tasks.amalgamation import load_amalgam

cli = CliRunner()
SMALL = ["--samples", "14", "--test", "10", "--seeds", "1", "--layers", "up2", "--resamples", "200"]
LINEAR = "segmentation-linear[epochs=1]"


def done(*arguments: str) -> Any:
    """The result of a command that succeeds."""
    result = cli.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str, code: int = 2) -> str:
    """The one sentence of a command that is refused with `code`."""
    result = cli.invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    said = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert result.stdout == "" and len(said) == 1 and said[0].startswith("gate: "), result.output
    return said[0]


def test_a_technique_is_reported_beside_vanilla_with_n_intervals_and_leaks(tmp_path: Path) -> None:
    asked = ("task", LINEAR, "--technique", "controlnet", *SMALL, "--output", str(tmp_path / "t"))
    shown = done(*asked)
    assert "segmentation-linear: trained on 14, judged on 10." in shown.stdout
    assert "controlnet is marked as a leak" in shown.stdout and "[100 %]" in shown.stderr
    again = done(*asked, "--format", "json", "--quiet")
    said = json.loads(again.stdout)
    assert again.stderr == "" and said["path"] == str(tmp_path / "t")
    assert [row["arm"] for row in said["rows"][:2]] == ["vanilla", "controlnet"]
    for row in said["rows"]:
        assert row["value"]["n"] == 10 and row["direction"] == "higher" and row["seeds"] == 1
        assert row["value"]["low"] <= row["value"]["value"] <= row["value"]["high"]
    assert said["rows"][0]["gain"] is None and said["rows"][1]["gain"]["n"] == 10
    vanilla, steered = (row["value"]["value"] for row in said["rows"][:2])
    assert said["rows"][1]["gain"]["value"] == pytest.approx(steered - vanilla)
    kept = json.loads((tmp_path / "t" / "results.json").read_text())
    assert kept["rows"] == said["rows"]
    table = done(*asked, "--format", "csv", "--quiet")
    assert table.stdout.startswith("features,") and "judged on 10" in table.stderr


def test_tasks_are_listed_and_described() -> None:
    rows = json.loads(done("list", "tasks", "--format", "json").stdout)
    needs = {row["name"]: row["needs"] for row in rows}
    assert needs == {
        "correspondence": "pairs",
        "correspondence-conv": "pairs",
        "scarce-segmentation": "masks",
        "segmentation": "masks",
        "segmentation-linear": "masks",
        "classification": "labels",
        "classification-mlp": "labels",
    }
    assert "higher" in done("list", "tasks").stdout
    said = json.loads(done("describe", "segmentation", "--format", "json").stdout)
    assert said["settings"]["width"] == 32 and "1807.10221" in said["source"]


def test_everything_of_the_page_is_in_the_help() -> None:
    shown = done("task", "--help").stdout
    flags = ("--technique", "--amalgamate", "--unweighted", "--assigners", "--sparsity", "--diversity")
    assert all(flag in shown for flag in (*flags, "--per-channel", "--data", "--output", "--format"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["segmentation-liner"], "Unknown task 'segmentation-liner'. Did you mean 'segmentation-linear'"),
        (["segmentation[widht=3]"], "Unknown setting 'widht'. Did you mean 'width'"),
        (["segmentation[epochs=0]"], "'epochs' of segmentation is 1 or more, not 0"),
        (["segmentation[width=a]"], "'width' of segmentation is int, not 'a'"),
        (["segmentation", "--technique", "contolnet"], "Unknown technique 'contolnet'. Did you mean"),
        (["segmentation", "--data", "scenes-hold-out"], "'scenes-hold-out'. Did you mean 'scenes-held-out'"),
        (
            ["segmentation", "--samples", "0"],
            "'samples' is wrong: input should be greater than or equal to 1",
        ),
        (["segmentation", "--test", "1"], "'test' is wrong: input should be greater than or equal to 2"),
        (["segmentation", "--amalgamate", "prompt,prompt"], "a source is amalgamated twice"),
        (["segmentation", "--amalgamate", "prompt@x"], "does not read as a source; write TECHNIQUE"),
        (["segmentation", "--amalgamate", "prompt", "--technique", "freeu"], "both given"),
        (["segmentation", "--amalgamate", "vanilla,prompt", "--assigners", "0"], "'assigners' is wrong"),
        (["segmentation", "--unweighted", "up1"], "unweighted layers belong to an amalgamation"),
        (["correspondence", "--amalgamate", "vanilla,prompt"], "use correspondence-conv"),
        (["segmentation", "--layers", "up9", *SMALL[:6]], "Unknown layer 'up9'"),
    ],
)
def test_what_is_typed_wrong_is_one_sentence(arguments: list[str], said: str) -> None:
    assert said in refused("task", *arguments)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    said = cli.invoke(app, ["task", LINEAR, *SMALL, "--quiet", "--output", str(tmp_path)])
    assert said.exit_code == 3 and "is not empty and holds no evaluation" in said.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]


PUBLIC: list[tuple[Callable[[Path], Path], str, str]] = [
    (layouts.spair, "correspondence-conv[epochs=1]", "JPEGImages/cat/2008_0011.jpg"),
    (layouts.ade, LINEAR, "annotations/validation/ADE_val_00000002.png"),
    (layouts.cityscapes, "segmentation[epochs=1,width=8]", "gtFine/val/bonn/*"),
    (layouts.horse, "scarce-segmentation[labelled=2,epochs=1,members=2]", "real/test/1.npy"),
    (layouts.cifar, "classification[epochs=1]", "*/test_batch"),
    (layouts.folders, "classification-mlp[epochs=1]", "val"),
]


@pytest.mark.parametrize(("write", "task", "file"), PUBLIC)
def test_a_task_runs_on_a_copy_of_public_data_and_names_the_file_that_is_gone(
    tmp_path: Path, write: Callable[[Path], Path], task: str, file: str
) -> None:
    root = write(tmp_path)
    asked = ("task", task, "--data", str(root), "--layers", "up2", "--seeds", "1", "--resamples", "200")
    said = json.loads(done(*asked, "--format", "json", "--quiet").stdout)
    assert said["judged_on"] >= 2 and 0 <= said["rows"][0]["value"]["value"] <= 100
    for gone in list(root.glob(file)):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert Path(file).name.replace("*", "") in refused(*asked, code=3)


def test_images_that_cannot_be_read_are_left_out_and_said(tmp_path: Path) -> None:
    layouts.folders(tmp_path)
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(b"no image")
    asked = ("task", "classification[epochs=1]", "--data", str(tmp_path), "--layers", "up2", "--seeds", "1")
    shown = done(*asked, "--resamples", "200", "--quiet")
    assert "trained on 5, judged on 2" in shown.stdout
    assert "1 image of" in shown.stdout and "left out; the first: cat/1.jpg, which" in shown.stdout


def test_an_interrupted_evaluation_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gate.tasks import bench

    real, calls = bench.gather, 0

    def once(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(bench, "gather", once)
    asked = ["task", LINEAR, "--technique", "prompt", *SMALL, "--quiet", "--format", "json"]
    kept = [*asked, "--output", str(tmp_path / "t")]
    first = cli.invoke(app, kept)
    assert first.exit_code == 130 and first.stdout == "", first.output
    assert "finished heads are kept; go on with the same command" in first.stderr
    assert [f.name for f in (tmp_path / "t" / "counts").iterdir()] == ["vanilla-0.npy"]
    assert json.loads(done(*kept).stdout)["rows"] == json.loads(done(*asked).stdout)["rows"]
    calls = 2
    assert "nothing is kept without --output DIR" in cli.invoke(app, asked).stderr


@pytest.mark.slow
def test_a_saved_amalgamation_is_extracted_by_its_file_alone(tmp_path: Path) -> None:
    folder, store = tmp_path / "t", tmp_path / "store"
    done("task", LINEAR, "--amalgamate", "vanilla,prompt@300", *SMALL, "--output", str(folder))
    head = folder / "heads" / "amalgamation-0.amalgam.safetensors"
    asked = ("extract", "--head", str(head), "--data", "scenes-held-out", "--samples", "9")
    told = done(*asked, "--explain")
    assert "amalgamation of vanilla, prompt@300 on tiny at t = 50, 300" in told.stdout and not store.exists()
    shown = done(*asked, "--output", str(store), "--no-latent-cache", "--workers", "1")
    assert f"{store}  9 images, amalgamation" in shown.stdout
    stored = gate.load_features(store)
    assert len(stored) == 9 and stored[0]["up2"].shape == (3 * 48, 16, 16)
    assert torch.isfinite(stored[8]["up2"]).all() and not torch.equal(stored[0]["up2"], stored[1]["up2"])
    amalgam, facts, _ = load_amalgam(head)
    assert [source["timestep"] for source in facts["sources"]] == [50, 300] and amalgam.layers == ("up2",)
    assert "is whole" in done("extract", "--verify", str(store)).stdout
    assert "is what the head says" in refused(*asked, "--output", str(tmp_path / "o"), "--layers", "up1")
    missing = refused(
        "extract", "--head", str(tmp_path / "none"), *asked[3:], "--output", str(tmp_path / "o")
    )
    assert "There is no file" in missing and "gate task --amalgamate" in missing


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_evaluation_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    task = ["task", "segmentation[epochs=8]", "--technique", "prompt", "--samples", "80", "--test", "20"]
    asked = [sys.executable, "-m", "gate", *task, "--seeds", "2", "--resamples", "200", "--format", "json"]
    kept = [*asked, "--output", str(tmp_path / "t")]
    process = subprocess.Popen(kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list((tmp_path / "t").glob("heads/prompt-*.checkpoint")) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "t").glob("heads/prompt-*.checkpoint"))
    assert not (tmp_path / "t" / "results.json").exists()
    rows = [json.loads(subprocess.check_output(command))["rows"] for command in (kept, asked)]
    assert rows[0] == rows[1] and not list((tmp_path / "t").glob("heads/*.checkpoint"))
