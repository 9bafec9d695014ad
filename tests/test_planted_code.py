"""Code that comes with a model is never run: pipelines and adapters with a module, or a pickle, that leaves a mark."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import planted
import pytest
from small_pipelines import build
from typer.testing import CliRunner

from gate.backbone import Backbone
from gate.backbones import load_backbone
from gate.cli import app
from gate.errors import GateError
from gate.registry import create_technique
from gate.sample import SampleSet

QUICK = ("--samples", "16", "--seeds", "1", "--timesteps", "50", "--quiet")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.template(tmp_path_factory.mktemp("template"))


def screened(*arguments: str, cwd: Path, said: str = "y\n" * 20) -> tuple[int, str]:
    """`gate screen` in the planted folder's parent, where Python would find its modules; answered with yes."""
    done = CliRunner().invoke(app, ["screen", *arguments, *QUICK, "--output", str(cwd / "run")], input=said)
    return done.exit_code, done.output


@pytest.mark.parametrize("case", planted.REFUSED)
def test_a_pipeline_s_own_code_is_refused_in_a_sentence(
    case: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    folder = planted.pipeline(tmp_path / "model", template, marker, planted.REFUSED[case])
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    code, output = screened("--backbone", str(folder), "--techniques", "shared-timestep", cwd=tmp_path)
    assert code == 3 and output.startswith("gate: ") and output.count("\n") == 1, output
    assert str(folder) in output and any(why in output for why in planted.WHY), output
    assert not marker.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("named", [["transformers", "AutoModel"], [planted.MODULE, "Model"]])
def test_nor_where_the_family_looks_at_the_denoiser_alone(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def its_own(at: Path, marker: Path) -> None:
        planted.edit(at / "model_index.json", text_encoder=named)
        planted.edit(at / "text_encoder" / "config.json", auto_map=planted.MODEL, model_type="planted")

    template = build("pixart", tmp_path / "template")
    folder = planted.pipeline(tmp_path / "model", template, tmp_path / "marker", its_own)
    monkeypatch.syspath_prepend(folder)
    code, output = screened("--backbone", str(folder), "--techniques", "shared-timestep", cwd=tmp_path)
    assert code == 3 and f"wants {'.'.join(named)} for its text_encoder" in output, output
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("case", ["tokenizer_of_its_own", "text_encoder_in_a_module", "scheduler_of_its_own"])
def test_nor_do_the_configs_that_a_single_file_follows(
    case: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    folder = planted.pipeline(tmp_path / "model", template, marker, planted.REFUSED[case])
    monkeypatch.syspath_prepend(folder)
    weights = str(folder / "unet" / "diffusion_pytorch_model.safetensors")
    code, output = screened("--backbone", weights, "--pipeline", str(folder), cwd=tmp_path)
    assert code == 3 and any(why in output for why in planted.WHY) and not marker.exists(), output


def test_code_beside_classes_that_need_none_is_passed_over(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    folder = planted.pipeline(tmp_path / "model", template, marker, planted.beside_what_loads)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    assert load_backbone(str(folder), device="cpu").family == "sdxl" and not marker.exists()


@pytest.mark.parametrize("part", ["text_encoder", "vae", "unet"])
def test_a_pickled_part_is_never_read(part: str, template: Path, tmp_path: Path) -> None:
    marker, stem = tmp_path / "marker", "model" if part == "text_encoder" else "diffusion_pytorch_model"

    def pickle_it(at: Path, marker: Path) -> None:
        (at / part / f"{stem}.safetensors").unlink()
        planted.pickled(at / part / ("pytorch_model.bin" if stem == "model" else f"{stem}.bin"), marker)

    folder = planted.pipeline(tmp_path / "model", template, marker, pickle_it)
    if part != "unet":  # what a single file does not hold would come from there
        weights = str(folder / "unet" / "diffusion_pytorch_model.safetensors")
        code, output = screened("--backbone", weights, "--pipeline", str(folder), cwd=tmp_path)
        assert code == 3 and "is pickled" in output and not marker.exists(), output
    code, output = screened("--backbone", str(folder), "--techniques", "shared-timestep", cwd=tmp_path)
    assert code == 3 and f"The {part} of" in output and "is pickled" in output and not marker.exists(), output


def test_layers_are_listed_without_a_denoiser_s_own_code(template: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    folder = planted.pipeline(tmp_path / "model", template, marker, planted.denoiser_of_its_own)
    for name in (folder, folder / "unet"):
        done = CliRunner().invoke(app, ["list", "layers", "--backbone", str(name)], input="y\n")
        assert done.exit_code == 3 and not marker.exists(), done.output


@pytest.mark.parametrize("case", planted.TECHNIQUES)
def test_what_a_technique_loads_runs_nothing(
    case: str, tiny: Backbone, scenes: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    name = planted.TECHNIQUES[case](tmp_path / "model", marker)
    planted.sow(tmp_path / "model", marker)
    monkeypatch.syspath_prepend(tmp_path / "model")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    with pytest.raises(GateError) as error:
        create_technique(name).check(tiny, scenes)
    said = str(error.value)
    assert error.value.exit_code in (2, 3, 5, 7) and "\n" not in said and "Error:" not in said
    assert not marker.exists()


def test_a_marker_is_written_where_code_does_run(tmp_path: Path) -> None:
    """What the other tests look for does happen: the pickle and the module write it."""
    import torch

    planted.pickled(tmp_path / "a.bin", tmp_path / "one")
    torch.load(tmp_path / "a.bin", weights_only=False)
    planted.sow(tmp_path, tmp_path / "two")
    subprocess.run([sys.executable, str(tmp_path / "planted.py")], check=True)
    assert (tmp_path / "one").exists() and (tmp_path / "two").exists()


# the real command, in a process of its own, with a terminal and without


def run_piped(command: list[str], cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        command, input="y\n" * 20, capture_output=True, text=True, cwd=cwd, env=_environment(), timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def run_in_a_terminal(command: list[str], cwd: Path) -> tuple[int, str]:
    """On a pseudo-terminal whose user has typed yes before being asked."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=_environment(), close_fds=True
    )
    os.close(theirs)
    os.write(ours, b"y\n" * 20)
    seen = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        seen += read
    os.close(ours)
    return process.wait(timeout=300), seen.decode(errors="replace")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "run"),
    [
        *((case, run_piped) for case in (*planted.REFUSED, *planted.TECHNIQUES)),
        *((case, run_in_a_terminal) for case in ("tokenizer_of_its_own", "text_encoder_of_its_own")),
        *((case, run_in_a_terminal) for case in ("captioner", "processor_of_a_captioner", "depth_model")),
    ],
)
def test_the_command_runs_nothing_and_says_so_in_a_sentence(
    case: str, run: Callable[[list[str], Path], tuple[int, str]], template: Path, tmp_path: Path
) -> None:
    marker, model = tmp_path / "marker", tmp_path / "model"
    if case in planted.REFUSED:
        planted.pipeline(model, template, marker, planted.REFUSED[case])
        asked = ["--backbone", str(model), "--techniques", "shared-timestep"]
    else:
        asked = ["--techniques", planted.TECHNIQUES[case](model, marker)]
        planted.sow(model, marker)
    command = [sys.executable, "-m", "gate", "screen", *asked, *QUICK, "--output", str(tmp_path / "run")]
    code, output = run(command, model)
    assert code == 3 and "gate: " in output and "Traceback" not in output, output
    assert str(model) in output or "evil.pt" in output or "holds no" in output, output
    assert not marker.exists()
