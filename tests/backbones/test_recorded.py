"""Pipelines that no family serves: recorded, and held against diffusers' own steps; the same for every family."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_pipelines import RECORDED, build_recorded
from small_pipelines import PIPELINES, build
from typer.testing import CliRunner

import gate
from gate.backbone import Backbone
from gate.backbones import config_layers
from gate.backbones.families import find_family
from gate.backbones.families.qwen_image import BEFORE
from gate.backbones.layers import MEAN_MAP
from gate.backbones.recorded import proof as proof_module
from gate.backbones.recorded.pipeline import own_pipeline
from gate.backbones.recorded.proof import prove
from gate.backbones.trusted import widened_class
from gate.cli import app
from gate.data import load_data
from gate.errors import ConfigurationError, UnsuitableError, UsageError

# pipelines that know sizes of their own alone
SIZES: dict[str, int | None] = {**dict.fromkeys(RECORDED, 64), "hidream": None, "kandinsky5": 1024}
HEAVY = ("hidream", "hunyuan-image", "kandinsky5", "wan", "ltx")
LEVEL = {"wan": 2e-3}  # UniPC tells its denoiser whole timesteps, so its level is not quite sigma T
FAMILY_SIZES = {"flux": 64, "qwen-image": 64, "z-image": 64, "flux2": 64}
FAMILIES = [f if f in ("sdxl", "pixart") else pytest.param(f, marks=pytest.mark.slow) for f in PIPELINES]
# sums in another order: the pipelines pad a prompt to other lengths than we do
CLOSE = {"qwen-image": 1e-5, "z-image": 1e-5}
EVERY = [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in RECORDED]


@pytest.fixture(autouse=True)
def ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PRX cleans its prompts with is not installed; plain ASCII comes out of it as it went in."""
    from diffusers import PRXPipeline

    class Same:
        fix_text = staticmethod(str)

    monkeypatch.setattr(sys.modules[PRXPipeline.__module__], "ftfy", Same, raising=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}

    class Built(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            made[name] = self[name] = build_recorded(name, tmp_path_factory.mktemp(name))
            return made[name]

    return Built()


def _load(folders: dict[str, Path], name: str) -> Any:
    return gate.load_backbone(str(folders[name]), device="cpu", dtype="float32", image_size=SIZES.get(name))


def _request(backbone: Backbone, prompts: list[str]) -> Any:
    batch = backbone.batch(load_data("scenes-held-out", n=len(prompts), size=backbone.image_size).samples)
    share = 0.4
    return batch.request(int(share * len(backbone.schedule)), 0).with_(
        conditioning=backbone.encode_prompts(prompts)
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_recorded_call_is_the_pipelines_own_to_the_last_bit(name: str, folders: dict[str, Path]) -> None:
    backbone = _load(folders, name)
    proof = prove(backbone)
    assert backbone.family == "recorded" and len(proof.levels) == 3
    assert min(level.largest for level in proof.levels) > 0.1  # there is something to differ from
    assert len({level.t for level in proof.levels}) == 3
    assert proof.prediction == 0.0
    assert proof.noise <= LEVEL.get(name, 1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_layers_are_listed_and_a_row_does_not_see_its_neighbours(name: str, folders: dict[str, Path]) -> None:
    backbone = _load(folders, name)
    listed = {layer.id: layer for layer in backbone.layers()}
    chosen = [i for i in listed if not listed[i].is_map and i != MEAN_MAP][-2:]
    texts = ["", "207"] if "classes" in backbone.traits else ["a cat", "a red house by the sea"]
    request = _request(backbone, texts)
    with torch.no_grad():
        both = backbone.denoise(request, chosen)
        alone = backbone.denoise(
            _request(backbone, texts[:1]).with_(x_t=request.x_t[:1], eps=request.eps[:1]), chosen
        )
    assert chosen
    for layer in chosen:
        found = both.features[layer]
        assert found.shape[1] == listed[layer].channels and found.shape[0] == 2
        assert torch.equal(found[:1], alone.features[layer])
    assert not torch.equal(both.features[chosen[-1]][0], both.features[chosen[-1]][1])
    assert all(layer.channels > 0 for layer in listed.values()) and set(listed) <= set(backbone.layer_paths)
    with torch.no_grad():
        maps = backbone.denoise(_request(backbone, texts[:1]), [i for i in listed if listed[i].is_map])
    assert all(found.numel() for found in maps.features.values())


# the head of Lumina 2 is given text too, and that of Kandinsky 5 a grid
HEADED = [n for n in RECORDED if n not in ("lumina2", "kandinsky5")]
HEAD = {"prx": "final_layer", "hidream": "final_layer"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in HEADED]
)
def test_the_images_tokens_are_those_that_the_output_projection_is_given(
    name: str, folders: dict[str, Path]
) -> None:
    backbone = _load(folders, name)
    head, given = backbone.denoiser.get_submodule(HEAD.get(name, "norm_out")), []
    last = [i for i in backbone.layer_paths if i.startswith(("block", "single")) and "." not in i][-1]
    handle = head.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        found = backbone.denoise(
            _request(backbone, ["7" if "classes" in backbone.traits else "a cat"]), [last]
        )
    handle.remove()
    tokens = found.features[last].flatten(2).transpose(1, 2)
    assert torch.equal(tokens, given[0].view(tokens.shape))


def test_prompts_reach_a_recorded_denoiser(folders: dict[str, Path]) -> None:
    backbone = _load(folders, "chroma")
    request = _request(backbone, ["a cat"])
    other = request.with_(conditioning=backbone.encode_prompts(["two dogs on a boat"]))
    with torch.no_grad():
        one, two = (backbone.denoise(r, []).prediction for r in (request, other))
    assert float((one - two).abs().max()) > 1e-4


def test_a_proof_fails_where_the_backbone_is_not_the_pipeline(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = _load(folders, "dit")
    real = type(backbone).call
    monkeypatch.setattr(type(backbone), "call", lambda self, x, t, *rest: real(self, x, t + 1, *rest))
    assert prove(backbone).prediction > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_families_give_what_their_pipelines_own_steps_give(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = gate.load_backbone(
        str(build(family, tmp_path)), device="cpu", dtype="float32", image_size=FAMILY_SIZES.get(family)
    )
    if family == "qwen-image":  # its pipeline counts the template's tokens by heart, of the real vocabulary

        def counted(*given: Any) -> Any:
            pipeline = own_pipeline(*given)
            pipeline.prompt_template_encode_start_idx = len(pipeline.tokenizer(BEFORE).input_ids)
            return pipeline

        monkeypatch.setattr(proof_module, "own_pipeline", counted)
    proof = prove(backbone)
    assert backbone.family == family and min(level.largest for level in proof.levels) > 0.1
    assert proof.prediction <= CLOSE.get(family, 0.0) and proof.noise <= 2e-3


def test_classes_are_labels_or_numbers(folders: dict[str, Path]) -> None:
    backbone = _load(folders, "dit")
    assert "classes" in backbone.traits
    by_name, by_number = (backbone.encode_prompts([text]).told[0] for text in ("golden retriever", "207"))
    told = [v for told in (by_name, by_number) for v in told.kwargs.values() if isinstance(v, torch.Tensor)]
    assert len(told) >= 2 and torch.equal(told[0], told[len(told) // 2])
    with pytest.raises(UnsuitableError, match="is told a class"):
        backbone.encode_prompts(["a cat on a mat"])


def test_tokens_are_refused_in_a_sentence(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="its scheduler steps through tokens, not noise"):
        _load(folders, "amused")


def test_a_size_that_a_pipeline_does_not_make_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="makes images of 512 px where 64 px are asked"):
        gate.load_backbone(str(folders["hidream"]), device="cpu", image_size=64)


def test_a_missing_package_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import PRXPipeline

    monkeypatch.delattr(sys.modules[PRXPipeline.__module__], "ftfy")
    with pytest.raises(ConfigurationError, match="needs the package ftfy, which is not installed"):
        _load(folders, "prx")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ("LucyEditPipeline", "whose call wants video besides a prompt"),
        ("HunyuanVideoFramepackPipeline", "whose call wants image besides a prompt"),
        ("LTXConditionPipeline", "LTXConditionPipeline cannot be built from"),
    ],
)
def test_what_wants_more_than_a_prompt_is_refused(
    other: str, sentence: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["aura-flow"], tmp_path / "other"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": other}))
    with pytest.raises(ConfigurationError, match=sentence):
        gate.load_backbone(str(folder), device="cpu")


def test_two_denoisers_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["aura-flow"], tmp_path / "two"))
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer_2"] = index["transformer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="it has 2 denoisers"):
        gate.load_backbone(str(folder), device="cpu", image_size=64)


def test_a_family_of_ours_goes_before_the_recording() -> None:
    ours = {"_class_name": "PixArtSigmaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    foreign = {"_class_name": "AuraFlowPipeline", "transformer": ["diffusers", "AuraFlowTransformer2DModel"]}
    assert find_family("x", ours).family == "pixart" and find_family("x", foreign).family == "recorded"


@pytest.mark.parametrize(
    ("library", "cls"),
    [
        ("transformers", "AutoModel"),
        ("transformers", "AutoTokenizer"),
        ("diffusers", "AutoModel"),
        ("diffusers", "DiffusionPipeline"),
        ("transformers", "pipeline"),
        ("os", "system"),
        ("torch.nn", "Linear"),
        ("my_folder_module", "Model"),
        ("loading_utils", "os"),
    ],
)
def test_the_wider_list_ends_at_models_of_the_two_packages(library: str, cls: str) -> None:
    with pytest.raises(ConfigurationError, match="never runs code that comes with a model"):
        widened_class("x", "text_encoder", library, cls)


def test_pipelines_that_are_none_of_diffusers_stay_refused() -> None:
    index = {"_class_name": "MyPipeline", "transformer": ["diffusers", "AuraFlowTransformer2DModel"]}
    with pytest.raises(ConfigurationError):
        find_family("x", index)


def test_layers_of_a_recorded_folder_are_listed_from_outside(folders: dict[str, Path]) -> None:
    assert [layer.id for layer in config_layers(str(folders["dit"]))] == [
        layer.id for layer in _load(folders, "dit").layers()
    ]


def test_doctor_proves_a_backbone(folders: dict[str, Path]) -> None:
    shown = CliRunner().invoke(
        app, ["doctor", "--backbone", str(folders["chroma"]), "--image-size", "64", "--format", "json"]
    )
    assert shown.exit_code == 0, shown.output
    checks = json.loads(shown.stdout)
    assert [check["state"] for check in checks] == ["ok"] * 4
    assert "family recorded" in checks[0]["detail"] and "differs by 0.0e+00" in checks[1]["detail"]


def test_doctor_says_broken_where_the_calls_differ(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gate.backbones.recorded.family import Recorded

    real = Recorded.call
    monkeypatch.setattr(Recorded, "call", lambda self, x, t, *rest: 1.01 * real(self, x, t, *rest))
    shown = CliRunner().invoke(
        app, ["doctor", "--backbone", str(folders["chroma"]), "--image-size", "64", "--format", "json"]
    )
    assert shown.exit_code == 3
    assert [check["state"] for check in json.loads(shown.stdout)] == ["ok", "broken", "broken", "broken"]
