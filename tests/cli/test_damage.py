"""A run whose files were changed is noticed by whoever reads it, in a sentence, with exit code 3."""

# long: one run, made once, and every way to damage it

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gate.cli import app
from gate.errors import DamagedError
from gate.report import figures
from gate.runs.directory import open_run, read_arrays, write_arrays, write_json, write_sealed
from gate.runs.parts import load_part
from gate.runs.seal import SEAL
from gate.screening import job
from gate.screening.measured import Measured
from gate.screening.verify import _difference

FLAGS = (
    "--techniques freeu,prompt --samples 14 --seeds 1 --timesteps 50 --image-samples 2 --image-steps 2 --folds 2 "
    "--resamples 200 --workers 1 --device cpu --quiet"
)
TECHNIQUES = ("vanilla", "freeu", "prompt")
READERS = ("rank", "plot", "resume", "verify")


def gate(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(done: Result, *told: str) -> None:
    """Exit code 3, one sentence that holds these words, and nothing on stdout."""
    assert done.exit_code == 3, done.output
    assert done.stdout == "" and done.stderr.startswith("gate: ") and len(done.stderr.splitlines()) == 1
    for text in told:
        assert text in done.stderr, done.stderr


@pytest.fixture(scope="module", autouse=True)
def one_figure() -> Any:
    """Drawing all of them is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        one = {"ranking": figures.figures()["ranking"]}
        patch.setattr(figures, "figures", lambda: one)
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and `begun` beside it: the same, stopped when every technique was measured."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_write", _stop)
        assert gate("screen", *FLAGS.split(), "--output", folder / "begun").exit_code == 130
    shutil.copytree(folder / "begun", folder / "sound")
    assert gate("resume", folder / "sound").exit_code == 0
    return folder / "sound"


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


@pytest.fixture
def begun(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound.parent / "begun", tmp_path / "begun"))


def edit(file: Path, change: Callable[[Any], None], write: Callable[[Path, Any], None] = write_json) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    write(file, value)


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


@pytest.mark.parametrize("seeds", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_sound_run_is_verified_by_measuring_again(run: Path, seeds: int) -> None:
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    drawn = set()
    for seed in range(seeds):
        done = gate("verify", run, "--seed", seed, "--quiet")
        assert done.exit_code == 0, done.output
        files, ranked, again = done.stdout.splitlines()
        assert "are as gate wrote them, and of one run" in files and "come out the same" in ranked
        assert "1 of 3 techniques" in again and f"seed {seed}" in again
        drawn |= {name for name in TECHNIQUES if f"({name};" in again}
    assert len(drawn) > (seeds > 1), "another seed draws others"
    assert before == {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}, "verify only reads"


@pytest.mark.slow
def test_any_flipped_bit_of_an_array_file_is_noticed(run: Path, begun: Path) -> None:
    rng = random.Random(0)
    for name in ("scores.safetensors", "pictures.safetensors"):
        whole = (run / name).read_bytes()
        for bit in (*range(0, 512, 7), *(rng.randrange(8 * len(whole)) for _ in range(100))):
            flip(run / name, bit)
            with pytest.raises(DamagedError):
                open_run(run)
            (run / name).write_bytes(whole)
    facts = read_arrays(next(begun.glob("parts/*.safetensors")))[1]
    (part,) = (f for f in begun.glob("parts/*.safetensors") if read_arrays(f)[1]["technique"] == "freeu")
    whole = part.read_bytes()
    assert load_part(begun, "freeu", Measured, facts["mark"]) is not None
    header = 8 * (8 + int.from_bytes(whole[:8], "little"))
    for bit in (*range(0, header, 11), *(rng.randrange(8 * len(whole)) for _ in range(100))):
        flip(part, bit)
        with pytest.raises(DamagedError):
            load_part(begun, "freeu", Measured, facts["mark"])
        part.write_bytes(whole)


@pytest.mark.slow
def test_any_flipped_bit_of_results_is_noticed_or_changes_nothing(run: Path) -> None:
    file, rng, noticed = run / "results.json", random.Random(1), 0
    whole, sound = file.read_bytes(), open_run(run).results
    for _ in range(300):
        flip(file, rng.randrange(8 * len(whole)))
        try:
            assert open_run(run).results == sound  # white space
        except DamagedError:
            noticed += 1
        file.write_bytes(whole)
    assert noticed > 200


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_of_the_scores_is_a_sentence(run: Path, reader: str) -> None:
    flip(run / "scores.safetensors", 8 * (run / "scores.safetensors").stat().st_size - 100)
    refused(gate(reader, run), "scores.safetensors was changed after gate wrote it", "screen again")


@pytest.mark.parametrize("reader", READERS)
def test_an_edited_configuration_is_noticed(run: Path, reader: str) -> None:
    edit(run / "run.json", lambda raw: raw["config"].update(timesteps=[300]))
    refused(gate(reader, run), "run.json was changed after gate wrote it", "undo the change")
    edit(run / "run.json", lambda raw: None, write_sealed)  # by somebody who seals what was edited
    refused(gate(reader, run), "run.json and results.json", "not of one run")


@pytest.mark.slow
def test_an_edited_configuration_does_not_mix_noise_levels(begun: Path) -> None:
    next(begun.glob("parts/*")).unlink()
    edit(begun / "run.json", lambda raw: raw["config"].update(timesteps=[300]))
    refused(gate("resume", begun), "run.json was changed")
    edit(begun / "run.json", lambda raw: raw.pop(SEAL))
    refused(gate("resume", begun, "--quiet"), "measured with other settings than run.json says")


@pytest.mark.slow
def test_exchanged_parts_are_noticed_and_one_is_measured_again(begun: Path) -> None:
    one, other = sorted(begun.glob("parts/*.safetensors"))[:2]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    refused(gate("resume", begun, "--quiet"), "should hold", "delete it, and gate resume")
    one.unlink()
    refused(gate("resume", begun, "--quiet"), "should hold", other.name)
    other.unlink()
    assert gate("resume", begun, "--quiet").exit_code == 0


def test_a_damaged_part_is_noticed_before_anything_is_measured(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, *_, gone = sorted(begun.glob("parts/*.safetensors"))
    gone.unlink()
    flip(part, 8 * part.stat().st_size - 9)
    monkeypatch.setattr(job, "attempts", lambda *_: pytest.fail("it measures"))
    refused(gate("resume", begun, "--quiet"), part.name, "is damaged; delete it")


@pytest.mark.parametrize("reader", ["rank", "plot", "verify"])
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["ranking"][0].update(score=0.9),
        lambda raw: raw["ranking"][0].update(score="abc"),
        lambda raw: raw.update(winners=["freeu"]),
        lambda raw: raw["axes"].update(sample=raw["axes"]["sample"][:-1]),
        lambda raw: raw["notes"].append("trust me"),
        lambda raw: (raw.pop(SEAL), raw["ranking"][0].update(score=0.9)),
    ],
    ids=["score", "text", "winner", "axes", "note", "without-its-seal"],
)
def test_edited_results_are_noticed_by_every_reader(
    run: Path, reader: str, change: Callable[[Any], None]
) -> None:
    edit(run / "results.json", change)
    refused(gate(reader, run), "results.json", f"make it anew: gate resume {run}")


@pytest.mark.parametrize(
    "damage",
    ["edited", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "gone"))],
)
def test_resume_makes_results_anew_from_the_scores(run: Path, damage: str) -> None:
    file, before = run / "results.json", open_run(run).results
    scores = (run / "scores.safetensors").read_bytes()
    if damage == "edited":
        edit(file, lambda raw: raw["ranking"][0].update(score=0.9))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.unlink()
    done = gate("resume", run)
    assert done.exit_code == 0 and done.stdout.startswith("2 techniques on tiny"), done.output
    assert ("making it anew" in done.stderr) == (damage != "gone")
    again = open_run(run).results
    assert again.ranking == before.ranking and again.axes == before.axes and again.notes == before.notes
    assert (run / "scores.safetensors").read_bytes() == scores and not (run / "parts").exists()


def test_who_seals_edited_results_is_found_by_ranking_again(run: Path) -> None:
    edit(run / "results.json", lambda raw: raw["ranking"][0].update(score=0.9), write_sealed)
    assert gate("rank", run).exit_code == 0
    refused(gate("verify", run, "--quiet"), "says 0.9 for ranking.0.score", "the scores make it")


@pytest.mark.slow
def test_who_bends_the_scores_and_seals_everything_is_found_by_measuring_again(run: Path) -> None:
    arrays, facts = read_arrays(run / "scores.safetensors")
    facts.pop(SEAL)
    bent = {k: np.array(v) for k, v in arrays.items()}
    for key in bent:
        if key.startswith("shift/"):
            bent[key][1:] *= 0.99
    seal = write_arrays(run / "scores.safetensors", bent, **facts)
    (run / "results.json").unlink()  # made anew, from what was bent
    assert gate("resume", run, "--quiet").exit_code == 0
    assert open_run(run).results.hashes["scores"] == seal
    found = [gate("verify", run, "--seed", seed, "--quiet") for seed in range(2)]
    names = [next((n for n in TECHNIQUES if f" of {n} " in f.stderr), "") for f in found]
    assert any(names), "a seed draws a technique that was bent"
    for done in itertools.compress(found, names):
        refused(done, "does not come out again: it differs by 1.0e-02")


@pytest.mark.slow
def test_other_images_or_weights_cannot_be_verified(run: Path) -> None:
    def other(raw: Any) -> None:
        raw["hashes"]["samples"] = "0" * 16

    edit(run / "run.json", other, write_sealed)
    edit(run / "results.json", other, write_sealed)
    refused(gate("verify", run, "--quiet"), "its images are not those on this machine any more")


def test_a_run_of_an_older_gate_is_read_as_it_stands_and_says_so(run: Path) -> None:
    def older(raw: Any) -> None:
        raw.pop(SEAL)
        raw["hashes"] = {k: v for k, v in raw["hashes"].items() if k in ("weights", "samples")}

    from safetensors.numpy import load_file, save_file

    edit(run / "results.json", older)
    edit(run / "run.json", lambda raw: raw.pop(SEAL))
    save_file(load_file(run / "scores.safetensors"), run / "scores.safetensors")
    for reader in ("rank", "plot"):
        done = gate(reader, run)
        assert done.exit_code == 0 and "carries no checksums (an older gate made it)" in done.stderr
    refused(gate("verify", run, "--quiet"), "carries no checksums")


def test_parts_of_an_older_gate_are_refused(begun: Path) -> None:
    from safetensors.numpy import load_file, save_file

    for part in begun.glob("parts/*.safetensors"):
        save_file(load_file(part), part)
    refused(gate("resume", begun, "--quiet"), "has no checksum; delete it, and gate resume")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "\x00", '{"config": {}, "digest": "0"}', '{"hashes": {}}']
)
def test_a_run_json_that_is_no_run_json_is_a_sentence(begun: Path, content: str) -> None:
    (begun / "run.json").write_text(content, encoding="utf-8")
    refused(gate("resume", begun), "run.json")


def test_what_is_no_run_is_told(begun: Path, tmp_path: Path) -> None:
    for reader in ("rank", "plot", "verify"):
        done = gate(reader, begun)
        assert (
            done.exit_code == 2 and f"It was interrupted; finish it with: gate resume {begun}" in done.stderr
        )
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "empty" / "run.json")
    for reader, place in itertools.product(READERS, ("empty", "nowhere")):
        done = gate(reader, tmp_path / place)
        assert done.exit_code == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_what_may_differ_is_of_the_largest_number_or_of_all_that_is_counted() -> None:
    told = np.array([[1.0, 2.0], [4.0, np.nan]], np.float32)
    assert _difference(told + np.float32(0.25), told, False) == 0.0625
    assert _difference(told + np.float32(0.25), told, True) == 0.75 / 7
    assert _difference(None, told, False) == _difference(told[0], told, False) == np.inf
    assert _difference(np.nan_to_num(told), told, True) == np.inf, "a number where there was none"
    assert _difference(told, told, True) == 0
