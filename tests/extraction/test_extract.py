"""`gate extract` through the real command: the screen's numbers in a store, gone on with, refused, explained."""

# long: one command, and all that it may be asked
from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import gate
from gate.backbone import Backbone
from gate.cli import app
from gate.cli.rank import extract_command
from gate.data import load_data
from gate.errors import IncomparableError, UsageError
from gate.extraction import chunks, engine, job
from gate.extraction.config import command_of, make_config
from gate.extraction.job import folder_of
from gate.runs.directory import open_run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes as files, in two folders, with captions; and a file that is no image."""
    root = tmp_path_factory.mktemp("images")
    for i, sample in enumerate(load_data("scenes-held-out", n=10, size=64)):
        place = root / ("a" if i < 5 else "b")
        place.mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(sample.caption or "", encoding="utf-8")
    (root / "b" / "broken.png").write_bytes(b"no image")
    return root


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["extract", *map(str, arguments)])


def test_a_store_holds_the_numbers_of_extract_under_the_files_names(
    tiny: Backbone, folder: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = run("--images", folder, "--technique", "prompt", "--layers", "up1,attention", "--output", store)
    assert done.exit_code == 0, done.output
    features = gate.load_features(store)
    assert len(features) == 10 and set(features.layers) == {"up1", "attention"}
    names = sorted([f"a/{i}.png" for i in range(5)] + [f"b/{i}.png" for i in range(5, 10)])
    assert list(features.names) == names and list(features.skipped) == ["b/broken.png"]
    samples = load_data("scenes-held-out", n=10, size=64).samples
    wanted = tiny.extract(samples, layers=["up1", "attention"], technique="prompt", timestep=50)
    for i in (0, 7):
        found = features[f"{'a' if i < 5 else 'b'}/{i}.png"]
        for layer, value in found.items():
            torch.testing.assert_close(value, wanted[layer][i], rtol=1e-4, atol=1e-5)
    assert "broken.png" in done.output and "images/s" in done.output
    again = run("--images", folder, "--technique", "prompt", "--layers", "up1,attention", "--output", store)
    assert again.exit_code == 0 and "10 images" in again.stdout
    other = run("--images", folder, "--technique", "prompt", "--layers", "up1", "--output", store)
    assert other.exit_code == 2 and "layers" in other.output
    whole = CliRunner().invoke(app, ["extract", "--verify", str(store)])
    assert whole.exit_code == 0 and "is whole" in whole.stdout
    shard = next((store / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    damaged = CliRunner().invoke(app, ["extract", "--verify", str(store)])
    assert damaged.exit_code == 3 and shard.name in damaged.output


def test_a_finished_store_is_noticed_before_anything_is_planned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--images", folder, "--layers", "up0", "--precision", "fast", "--output", tmp_path / "store")
    assert run(*base).exit_code == 0

    def none(*_: Any) -> Any:
        raise AssertionError("planned again")

    with monkeypatch.context() as patched:
        patched.setattr(job, "_plan", none)
        again = run(*base)
        assert again.exit_code == 0 and "nothing is left to extract" in again.output
        assert "10 images" in again.stdout and "broken.png" in again.output
        other = run(*base, "--timestep", 100)
        assert other.exit_code == 2 and "timestep (50 there, 100 now)" in other.output
    next((tmp_path / "store" / "shards").iterdir()).unlink()
    made = run(*base)
    assert made.exit_code == 0 and "nothing is left" not in made.output
    assert CliRunner().invoke(app, ["extract", "--verify", str(tmp_path / "store")]).exit_code == 0


def test_processes_batches_and_shards_change_no_bit(folder: Path, tmp_path: Path) -> None:
    base = ("--images", folder, "--layers", "up1", "--output")
    assert run(*base, tmp_path / "one", "--workers", 1, "--batch-size", 4, "--per-shard", 11).exit_code == 0
    assert run(*base, tmp_path / "two", "--workers", 2, "--batch-size", 3, "--per-shard", 2).exit_code == 0
    one, two = gate.load_features(tmp_path / "one"), gate.load_features(tmp_path / "two")
    assert list(one.names) == list(two.names)
    for i in range(10):
        torch.testing.assert_close(one[i]["up1"], two[i]["up1"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_latents_are_kept_for_the_next_time_and_change_no_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--images", folder, "--layers", "up0", "--workers", 1, "--output")
    assert run(*base, tmp_path / "cold").exit_code == 0
    from gate.backbones.codec import Codec

    def none(*_: Any) -> Any:
        raise AssertionError("encoded again")

    cold = gate.load_features(tmp_path / "cold")
    with monkeypatch.context() as patched:
        patched.setattr(Codec, "_encode_one", none)
        refused = run(*base, tmp_path / "none", "--no-latent-cache")
    assert refused.exit_code != 0 and not (tmp_path / "none" / "store.json").exists()
    assert run(*base, tmp_path / "warm").exit_code == 0
    warm = gate.load_features(tmp_path / "warm")
    assert all(torch.equal(cold[i]["up0"], warm[i]["up0"]) for i in range(10))


@pytest.mark.slow
def test_what_was_interrupted_is_gone_on_with_and_equals_the_uninterrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "images": str(folder),
        "layers": "up0",
        "workers": 1,
        "per_shard": 2,
        "batch_size": 2,
    }
    whole = job.extract(**settings, output=str(tmp_path / "whole")).features()
    made: list[int] = []
    real = engine.features_of

    def counted(work: Any, name: str, samples: Any, *args: Any, **options: Any) -> Any:
        if len(samples) > 1 or made:
            made.append(len(samples))
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(work, name, samples, *args, **options)

    monkeypatch.setattr(chunks, "features_of", counted)
    with pytest.raises(job.Interrupted) as stop:
        job.extract(**settings, output=str(tmp_path / "part"))
    assert stop.value.told.startswith("whole shards are kept; go on with: gate extract --images")
    with pytest.raises(UsageError, match="interrupted"):
        gate.load_features(tmp_path / "part")
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "part" / "shards").iterdir()}
    assert len(before) == 2
    made.clear()
    made += [0] * 10
    part = job.extract(**settings, output=str(tmp_path / "part")).features()
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "part" / "shards").iterdir()}
    assert all(after[name] == at for name, at in before.items()), "a finished shard was made again"
    assert list(part.names) == list(whole.names)
    assert all(torch.equal(part[i]["up0"], whole[i]["up0"]) for i in range(10))


@pytest.fixture(scope="module")
def screened(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs") / "run"
    gate.screen(
        "caption,prompt,noise-ensemble[members=2]",
        images=str(folder),
        samples=10,
        timesteps=(50,),
        seeds=1,
        probes="",
        image_samples=0,
        layers="up0,up1",
        output=str(place),
    )
    return place


def test_a_run_says_technique_state_layers_timestep_and_images(
    tiny: Backbone, screened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate.techniques.caption import Caption

    def again(*_: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(Caption, "fit", again)
    done = run("--from", screened, "--technique", "caption,prompt", "--output", tmp_path / "two")
    assert done.exit_code == 0, done.output
    with pytest.raises(UsageError, match="caption"):
        gate.load_features(tmp_path / "two")
    found = gate.load_features(tmp_path / "two" / "prompt")
    assert found.asked["timestep"] == 50 and found.asked["layers"] == ["up0", "up1"] and len(found) == 10
    samples = load_data("scenes-held-out", n=10, size=64).samples
    wanted = tiny.extract(samples, layers=["up0", "up1"], technique="prompt", timestep=50)
    torch.testing.assert_close(found["a/3.png"]["up1"], wanted["up1"][3], rtol=1e-4, atol=1e-5)


def test_the_command_that_a_screening_prints_works_as_printed(
    screened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = CliRunner().invoke(app, ["rank", str(screened)]).stdout
    run_ = open_run(screened)
    command = extract_command(run_.results, screened)
    if not run_.results.winners:
        assert "gate extract" not in printed and command == ""
        pytest.skip("no winner among ten images")
    assert command in printed
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    stores = list(Path(f"{screened}-features").rglob("store.json"))
    assert len(stores) == min(3, len(run_.results.winners))


def test_other_weights_than_the_run_s_are_refused(
    screened: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate.backbones.pipeline import PipelineBackbone

    monkeypatch.setattr(PipelineBackbone, "fingerprint", lambda self: "0" * 16)
    done = run("--from", screened, "--technique", "prompt", "--output", tmp_path / "s")
    assert done.exit_code == IncomparableError.exit_code and "weights" in done.output
    assert not (tmp_path / "s").exists()


def test_explain_says_what_and_why_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    done = run(
        "--images", folder, "--technique", "prompt,vanilla", "--layers", "up1", "--explain", "--output", "x"
    )
    assert done.exit_code == 0, done.output
    for words in ("processor:", "stops after its last layer, at 52 %", "GFLOP an image", "in all", "too few"):
        assert words.replace(" %", "%") in done.stdout.replace(" %", "%"), (words, done.stdout)
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--output", "x"], "--images DIR"),
        (["--images", "d"], "--output STORE"),
        (["--images", "d", "--top", "3", "--output", "x"], "--from RUN"),
        (["--images", "d", "--data", "scenes-all", "--output", "x"], "not both"),
        (["--from", "r", "--backbone", "tiny", "--output", "x"], "backbone is what the run says"),
        (["--from", "r", "--output", "x"], "r"),
        (["--images", "d", "--technique", "promt", "--output", "x"], "Did you mean"),
        (["--images", "nowhere", "--output", "x"], "nowhere"),
        (["--data", "scenes", "--output", "x"], "data set"),
        (
            ["--data", "scenes-all", "--precision", "fast", "--dtype", "float32", "--output", "x"],
            "exact computes in",
        ),
        (["--data", "scenes-all", "--layers", "up9", "--output", "x"], "layer"),
        (["--data", "scenes-all", "--layout", "zip", "--output", "x"], "layout"),
        (["--verify", "x", "--top", "3"], "--verify STORE reads"),
        (["--verify", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_one_sentence(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*flags)
    lines = [line for line in done.output.splitlines() if line.startswith("gate: ")]
    assert done.exit_code == 2 and len(lines) == 1 and said in lines[0], done.output
    assert "bug" not in lines[0] and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_fast_keeps_its_tolerance_on_trained_weights(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    base = ("--images", folder, "--layers", "paper", "--output")
    assert run(*base, tmp_path / "exact").exit_code == 0
    assert run(*base, tmp_path / "fast", "--precision", "fast").exit_code == 0
    exact, fast = gate.load_features(tmp_path / "exact"), gate.load_features(tmp_path / "fast")
    assert exact.asked["dtype"] == "float32" and fast.asked["dtype"] == "bfloat16"
    for layer in exact.layers:
        a, b = exact.arrays(layer).flatten(1), fast.arrays(layer).float().flatten(1)
        assert (a - b).norm() <= 3e-2 * a.norm()
        assert torch.cosine_similarity(a, b).min() >= 0.999


def test_the_epilogue_and_its_projection_are_in_the_store(folder: Path, tmp_path: Path) -> None:
    flags = ("--pool", 4, "--project", 6, "--save-dtype", "float16", "--normalise")
    done = run("--images", folder, "--layers", "up1,up2", *flags, "--output", tmp_path / "s")
    assert done.exit_code == 0, done.output
    features = gate.load_features(tmp_path / "s")
    value = features[0]["up2"]
    assert value.shape == (6, 4, 4) and value.dtype == torch.float16
    torch.testing.assert_close(value.float().norm(dim=0), torch.ones(4, 4), rtol=2e-3, atol=2e-3)
    assert features.projection is not None
    assert features.asked["epilogue"]["project"] == 6


def test_a_command_can_be_typed_again() -> None:
    config = make_config(
        {"run": "my run", "techniques": "a+b,c", "cache": False, "output": "x", "normalise": True}
    )
    words = shlex.split(command_of(config))
    assert words[:2] == ["gate", "extract"]
    pairs = {"--from": "my run", "--technique": "a+b,c", "--output": "x"}
    assert all(words[words.index(k) + 1] == v for k, v in pairs.items())
    assert "--no-latent-cache" in words and "--normalise" in words


def test_folders_of_techniques_are_file_names_and_never_meet() -> None:
    names = ["prompt", "prompt+controlnet", "freeu[b1=1.2]", "freeu[b1=1,2]", "../x", "a/b", ".", "x" * 300]
    folders = [folder_of(name) for name in names]
    assert folders[:2] == names[:2] and len(set(folders)) == len(names)
    assert all(
        Path(f).name == f and not f.startswith(".") and len(f) < 100 and os.sep not in f for f in folders
    )


def test_a_store_says_what_decided_its_numbers(folder: Path, tmp_path: Path) -> None:
    assert run("--images", folder, "--layers", "up0", "--seed", 3, "--output", tmp_path / "s").exit_code == 0
    asked = json.loads((tmp_path / "s" / "store.json").read_text(encoding="utf-8"))["asked"]
    assert asked["seed"] == 3 and asked["timestep"] == 50 and asked["technique"] == "vanilla"
    assert asked["backbone"]["name"] == "tiny" and len(asked["backbone"]["weights"]) == 16
    assert asked["precision"] == "exact" and asked["channels_last"] is False
