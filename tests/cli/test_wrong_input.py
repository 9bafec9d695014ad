"""What a new user types wrong: one sentence that says what to do, the code of the README, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from image_files import fill
from typer.testing import CliRunner

import gate
from gate.cli import app
from gate.errors import GateError, UsageError

cli = CliRunner()
FAST = [
    "--techniques",
    "freeu",
    "--samples",
    "8",
    "--seeds",
    "1",
    "--timesteps",
    "50",
    "--image-samples",
    "0",
]
FAST += ["--resamples", "200", "--workers", "1"]


def refused(arguments: list[str], code: int = 2) -> str:
    """The one sentence of a command that is refused with `code`."""
    result = cli.invoke(app, arguments)
    assert result.exit_code == code, result.output
    said = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert result.stdout == "" and len(said) == 1 and said[0].startswith("gate: "), result.output
    assert "bug" not in said[0] and "Traceback" not in result.output
    return said[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, in which nothing may be left."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "-1"], "'seed' is wrong: input should be greater than or equal to 0, got -1"),
        (["--images", ""], "'images' is wrong: it is empty"),
        (["--output", ""], "'output' is wrong: it is empty"),
        (["--data", "scenes-held-out", "--images", "photos"], "give data or images, not both"),
        (["--revision", "main"], "A revision belongs to a hub id"),
        (["--techniques", "prompt++freeu"], "on both sides of each '+'"),
        (["--techniques", "freeu[]"], "are empty; write freeu"),
        (["--techniques", "freeu[b1=1,b1=2]"], "given twice"),
        (["--techniques", "freeu[b1=abc]"], "b1 must be float, got 'abc'"),
        (["--techniques", "freeu[b1=True]"], "b1 must be float, got True"),
        (["--techniques", "freeu[b1=1e400]"], "b1 must be float, got inf"),
        (["--techniques", "prompt+noise-ensemble[members=2.5]"], "members must be int, got 2.5"),
        (["--techniques", "lora[over_fitted=1]"], "over_fitted must be bool, got 1"),
        (["--techniques", "freeu[b1=-1]"], "b1 must be above 0"),
        (["--output", "x" * 300], "too long a path"),
        (["--images", "y" * 300], "too long a path"),
        (["--images", "nowhere"], "'nowhere' does not exist"),
        (["--labels", "labels.csv"], "give --images DIR too"),
        (["--backbone", "nowhere"], "Unknown backbone 'nowhere'"),
        (["--backbone", "weights.safetensors"], "There is no file weights.safetensors"),
        (["--backbone", "model.ckpt"], "only safetensors are loaded"),
        (["--data", "scenes-hold-out"], "Did you mean 'scenes-held-out'"),
        (["--techniques", "fre"], "Did you mean 'freeu'"),
        (["--strength", "nan"], "'strength' is wrong"),
        (["--sigma", "inf"], "'sigma' is wrong"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: list[str], said: str, here: Path) -> None:
    assert said in refused(["screen", *arguments])
    assert not list(here.iterdir())


def test_of_a_folder_of_images_what_lies_beside_it_is_looked_for_too(here: Path) -> None:
    fill(here / "photos", 8)
    for flag in ("labels", "captions", "masks"):
        assert f"There is no 'gone' for --{flag}" in refused(
            ["screen", "--images", "photos", f"--{flag}", "gone"]
        )
    assert "is a file" in refused(["screen", "--images", "photos/img00.png"])


# Nothing heavy before the names and paths are known to lead somewhere; a word before anything heavy.

HOOK = """
import os, sys
class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.write(2, b"TORCH\\n")
            os._exit(99)
sys.meta_path.insert(0, Torch())
from gate.cli import main
sys.argv = ["gate", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(
    "command",
    [
        ["screen", "--images", "nowhere"],
        ["screen", "--output", "taken"],
        ["screen", "--techniques", "freeu[b1=abc]"],
        ["screen", "--layers", "gone.json"],
        ["screen", "--config", "gone.yaml"],
        ["fit", "lora", "--images", "nowhere", "--output", "new"],
        ["fit", "lora", "--data", "scenes-trained", "--output", "taken"],
        ["fit", "lorra", "--data", "scenes-trained", "--output", "new"],
        ["fit", "lora", "--data", "scenes-trained", "--output", "new", "--dtype", "float16"],
    ],
)
def test_a_typo_costs_no_import_of_torch(command: list[str], here: Path) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "file").touch()
    done = subprocess.run([sys.executable, "-c", HOOK, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "TORCH" not in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [["screen"], ["fit", "lora", "--data", "scenes-trained", "--output", "new"]],
    ids=["screen", "fit"],
)
def test_the_first_sign_of_life_comes_before_torch(command: list[str], here: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HOOK, *command], capture_output=True, text=True)
    assert done.returncode == 99
    first, last = done.stderr.splitlines()
    assert first.startswith("loading tiny to ") and last == "TORCH"


# What only the backbone knows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--timesteps", "1000"], "choose one in 0 ... 999"),
        (["--sigma", "5"], "has no sigma of 5; choose one in"),
        (["--metrics", "cosin"], "Did you mean 'cosine'"),
        (["--device", "meta"], "Device 'meta' is not usable here"),
    ],
)
def test_impossible_levels_and_measures_are_wrong_usage(arguments: list[str], said: str, here: Path) -> None:
    timesteps = [] if "--timesteps" in arguments or "--sigma" in arguments else ["--timesteps", "50"]
    assert said in refused(["screen", *arguments, *timesteps, "--output", "run"])
    assert not list(here.iterdir())


def test_a_class_conditioned_backbone_is_refused(here: Path) -> None:
    from diffusers import UNet2DConditionModel

    from gate.backbones.hub import EMBEDDED

    (here / "model").mkdir()
    for part in EMBEDDED.iterdir():
        if part.name != "unet":
            (here / "model" / part.name).symlink_to(part)
    config = UNet2DConditionModel.load_config(EMBEDDED / "unet")
    UNet2DConditionModel.from_config(config, num_class_embeds=3).save_pretrained(here / "model" / "unet")
    said = refused(["screen", *FAST, "--backbone", "model", "--output", "run"], code=3)
    assert "needs a class or a noise level for every image" in said and not (here / "run").exists()


def test_weights_that_are_nowhere_have_the_code_of_missing_weights(here: Path) -> None:
    result = cli.invoke(
        app, ["screen", *FAST, "--techniques", "lora[weights=foo/bar]", "--samples", "16", "--quiet"]
    )
    assert result.exit_code == 5 and "download foo/bar" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# Settings in a file, and in Python


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sampels: 16\n", "Unknown setting 'sampels'. Did you mean 'samples'"),
        ("samples: 16\nseeds: [1\nlayers: up1\n", "is no YAML in line 3"),
        ("samples: 16\nsamples: 32\n", "gives 'samples' twice"),
        ("image-samples: 4\nimage_samples: 8\n", "gives 'image_samples' twice"),
        ("seeds: true\n", "'seeds' is wrong: a number or text is wanted, not True"),
        ("format: xml\n", "'format' is wrong: choose one of table, json, csv, md"),
        ("quiet: 3\n", "'quiet' is wrong: choose true or false"),
        ("- samples\n", "must hold settings as 'name: value' lines"),
        ("a\x00b", "cannot be read: unacceptable character"),
    ],
)
def test_a_config_file_says_where_it_is_wrong(text: str, said: str, here: Path) -> None:
    (here / "run.yaml").write_text(text)
    assert said in refused(["screen", "--config", "run.yaml"])


def test_a_config_file_that_is_no_text(here: Path) -> None:
    (here / "run.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(["screen", "--config", "run.yaml"])
    assert "cannot be read" in refused(["screen", "--config", "."])
    assert "is too long for one" in refused(["screen", "--config", "/dev/zero"])
    nested = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]  # ten to the tenth, if it were written out
    nested += [f"{b}: &{b} [{', '.join(10 * [f'*{a}'])}]" for a, b in zip("abcdefghi", "bcdefghij")]
    (here / "run.yaml").write_text("\n".join([*nested, "seed: *j"]))
    assert "Unknown setting 'a'" in refused(["screen", "--config", "run.yaml"])
    (here / "run.yaml").write_text("seed: &a [x, x, x]\ntechniques: [*a, *a]\n")
    assert "wrong" in refused(["screen", "--config", "run.yaml"])


def test_a_config_file_takes_flags_by_their_own_names(here: Path) -> None:
    (here / "run.yaml").write_text(
        "image-samples: 0\nformat: csv\nquiet: true\ndry-run: true\ntechniques: freeu\n"
    )
    result = cli.invoke(app, ["screen", "--config", "run.yaml"])
    assert (
        result.exit_code == 0
        and result.stdout.splitlines()[0] == "technique,calls/image,passes,calls in all,needs"
    )
    result = cli.invoke(app, ["screen", "--config", "run.yaml", "--format", "md"])
    assert result.stdout.startswith("| technique |"), "a flag overrides the file"


def test_python_says_which_setting_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="Unknown setting 'techniqes'. Did you mean 'techniques'"):
        gate.screen(techniqes="freeu")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="'seeds' is wrong: a number or text is wanted, not True"):
        gate.screen("freeu", seeds=True)
    with pytest.raises(UsageError, match="Unknown technique 'freu'"):
        gate.screen(["freu"])


# Conveniences


def test_one_name_is_a_list_of_one(tiny: Any, scenes: Any, tmp_path: Path) -> None:
    import torch

    assert set(tiny.extract(scenes[:1].samples, layers="up1")) == {"up1"}
    with gate.capture(tiny.denoiser, "up1") as seen:
        batch = tiny.batch(scenes[:1].samples)
        tiny.denoise(batch.request(50, 0))
    assert set(seen) == {"up1"} and torch.is_tensor(seen["up1"])
    small: dict[str, Any] = {"samples": 16, "seeds": 1, "timesteps": 50, "image_samples": 0, "resamples": 200}
    done = gate.screen("freeu", **small, workers=1, probes="knn", output=str(tmp_path / "run"))
    assert [row.name for row in done.results.ranking] == ["freeu"]
    assert len(repr(done).splitlines()) == 2 and "freeu" in repr(done) and str(tmp_path / "run") in repr(done)


def test_dir_shows_the_public_names() -> None:
    assert dir(gate) == sorted(gate.__all__) and {"screen", "capture", "GateError"} <= set(dir(gate))
    assert all(getattr(gate, name) is not None for name in dir(gate))


def test_an_error_of_the_command_is_an_error_of_python() -> None:
    assert issubclass(UsageError, GateError) and gate.GateError is GateError
