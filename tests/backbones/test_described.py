"""What serves a backbone, and why; and that a recording of each family's pipeline is what the family computes."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_pipelines import build_recorded
from small_pipelines import PIPELINES, build
from typer.testing import CliRunner

import gate
from gate.backbones.load import layers_of
from gate.backbones.recorded.levels import level_of
from gate.backbones.recorded.proof import _layout, prove
from gate.backbones.sketch import bare_layers
from gate.cli import app
from gate.data import load_data
from gate.errors import ConfigurationError

SIZES = {"flux": 64, "qwen-image": 64, "z-image": 64, "flux2": 64}
QUICK = ("unconditional", "pixart", "sd3")
# sums in another order: the pipelines pad a prompt to other lengths than the families do
CLOSE = {"qwen-image": 1e-5, "z-image": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("chroma", "dit", "aura-flow")
    return {name: build_recorded(name, tmp_path_factory.mktemp(name)) for name in names}


def _described(folder: Path) -> dict[str, Any]:
    shown = CliRunner().invoke(app, ["describe", "--backbone", str(folder), "--format", "json"])
    assert shown.exit_code == 0, shown.output
    facts: dict[str, Any] = json.loads(shown.stdout)
    return facts


def test_describe_says_what_serves_a_backbone(folders: dict[str, Path], tmp_path: Path) -> None:
    chroma, dit, ours = (_described(f) for f in (folders["chroma"], folders["dit"], build("sdxl", tmp_path)))
    assert chroma["family"] == "recorded" and chroma["takes"] == ["text"] and not chroma["refused"]
    assert "no family calls a ChromaTransformer2DModel as ChromaPipeline does" in chroma["why"]
    assert chroma["prediction"] == "flow_prediction" and dit["takes"] == ["classes"]
    assert ours["family"] == "sdxl" and ours["why"] == "the family sdxl calls a UNet2DConditionModel"
    assert (ours["prediction"], ours["timesteps"], ours["refused"]) == ("epsilon", 1000, "")
    assert _described(Path("tiny"))["family"] == "unet"
    shown = CliRunner().invoke(app, ["describe", "--backbone", str(folders["chroma"])])
    assert "recorded" in shown.stdout and "FlowMatchEulerDiscreteScheduler" in shown.stdout


def test_describe_says_why_a_backbone_does_not_load(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["aura-flow"], tmp_path / "other"))
    index = json.loads((folder / "model_index.json").read_text())
    for changed, sentence in (
        ({"_class_name": "LucyEditPipeline"}, "whose call wants video besides a prompt"),
        ({"transformer_2": index["transformer"]}, "it has 2 denoisers"),
        ({"_class_name": "MyPipeline"}, "which no family serves"),
    ):
        (folder / "model_index.json").write_text(json.dumps({**index, **changed}))
        assert sentence in _described(folder)["refused"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert _described(folder)["refused"] == ""


@pytest.mark.parametrize("arguments", [[], ["freeu", "--backbone", "tiny"]])
def test_describe_takes_a_name_or_a_backbone(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, ["describe", *arguments])
    assert shown.exit_code == 2 and "takes a name, or --backbone" in shown.output


def test_layers_are_listed_where_a_recorded_backbone_s_weights_are_not(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["chroma"], tmp_path / "bare"))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    layers, why = layers_of(str(folder))
    assert "is missing" in why and {"block0.adaln", "single0", "out"} <= {layer.id for layer in layers}
    shown = CliRunner().invoke(app, ["list", "layers", "--backbone", str(folder)])
    assert shown.exit_code == 0 and "gate.capture reads these layers" in shown.stderr


BARE = (
    "ControlNetModel",
    "ControlNetXSAdapter",
    "MotionAdapter",
    "SD3ControlNetModel",
    "UNetControlNetXSModel",
)


def _looked_at(name: str) -> bool:
    """Whether a class's layers are listed, from its defaults alone; else it is refused in a sentence that names it."""
    try:
        rows = bare_layers(name, {})
    except ConfigurationError as error:
        assert name in str(error)
        return False
    assert len({row.id for row in rows}) == len(rows) > 3
    return True


@pytest.mark.parametrize("name", BARE)
def test_layers_of_unusual_denoisers_are_listed(name: str) -> None:
    assert _looked_at(name)


@pytest.mark.slow
def test_layers_of_any_denoiser_are_listed_or_refused() -> None:
    import diffusers

    every = {n: getattr(diffusers, n) for n in dir(diffusers) if not n.startswith(("Auto", "VQ"))}
    names = [n for n, cls in every.items() if inspect.isclass(cls) and issubclass(cls, diffusers.ModelMixin)]
    assert len(names) > 100 and sum(map(_looked_at, names)) > 70


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in PIPELINES]
)
def test_a_family_and_a_recording_of_its_pipeline_agree(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one image, one noise and one prompt, in the VAE's own layout of a latent."""
    from gate.backbones import families as package

    folder, size = str(build(family, tmp_path)), SIZES.get(family)
    ours: Any = gate.load_backbone(folder, device="cpu", dtype="float32", image_size=size)
    monkeypatch.setattr(package, "families", lambda: ())
    size = ours.image_size  # a pipeline's own may be another than its denoiser's
    theirs: Any = gate.load_backbone(folder, device="cpu", dtype="float32", image_size=size)
    assert (ours.family, theirs.family) == (family, "recorded") and ours.image_size == theirs.image_size
    if family == "qwen-image":  # its pipeline counts the template's tokens by heart, of the real vocabulary
        from gate.backbones.families.qwen_image import BEFORE

        theirs.pipeline.prompt_template_encode_start_idx = len(theirs.tokenizer(BEFORE).input_ids)
        theirs.move(theirs.device)  # prompts are encoded anew
    samples = load_data("scenes-held-out", n=1, size=ours.image_size).samples
    mine, other = ours.batch(samples), theirs.batch(samples)
    onto = _layout(ours, theirs.geometry)  # for every entry of the family's latent, that of the VAE's
    torch.testing.assert_close(other.x0.flatten()[onto], mine.x0.flatten(), rtol=1e-5, atol=1e-6)
    said = ["a cat" if "text" in ours.traits else ""]
    asked = mine.request(int(0.4 * len(ours.schedule)), 0)
    back = torch.empty_like(asked.x_t).flatten()
    back[onto] = asked.x_t.flatten()
    # the same time for both: which step it is may depend on how many there are (Flux 2)
    t = ours.schedule.told(asked.t_condition)
    t = t.round() if theirs.geometry.integer_times else t  # Sana's scheduler tells whole steps alone
    levels = [level_of(backbone.schedule, float(t)) for backbone in (ours, theirs)]
    assert levels[0] == pytest.approx(levels[1], abs=2e-3)
    with torch.no_grad():
        one = ours.call(asked.x_t, t, ours.encode_prompts(said), asked)[:, : asked.x_t.shape[1]]
        two = theirs.call(back.view(other.x0.shape), t, theirs.encode_prompts(said), asked)
    assert float(one.abs().max()) > 0.1
    assert float((two.flatten()[onto] - one.flatten()).abs().max()) <= CLOSE.get(family, 0.0)
    assert prove(theirs).prediction == 0.0
