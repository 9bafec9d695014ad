"""Where a backbone's files come from, and what is said when they are not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm_keys import unet_keys, vae_keys
from small_pipelines import build, byte_tokenizer
from typer.testing import CliRunner

import gate
from gate.backbones import hub, load
from gate.backbones.index import part_names
from gate.backbones.parts import load_parts, vae_dtype
from gate.backbones.trusted import CLASSES, trusted_class
from gate.cli import app
from gate.errors import ConfigurationError, MissingWeightsError, UsageError


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=r"text_encoder_2/model\.safetensors is missing"):
        gate.load_backbone(str(copy))


def test_shards_are_counted_by_their_index(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    first, second = (f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
    weights.rename(copy / "unet" / first)
    shards = {"weight_map": {"conv_in.weight": first, "conv_out.weight": second}}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(shards))
    index = hub.read_index("x", copy)
    assert hub.missing_files(copy, index, part_names(index)) == [f"unet/{second}"]


def test_pickled_weights_are_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConfigurationError, match=r"is pickled \(unet/diffusion_pytorch_model\.bin\)"):
        gate.load_backbone(str(copy))
    with pytest.raises(UsageError, match="is pickled"):
        gate.load_backbone("some/model.ckpt")


def test_code_of_a_repository_is_never_run(copy: Path) -> None:
    (copy / "my_unet.py").write_text("raise SystemExit('run')")
    index = json.loads((copy / "model_index.json").read_text())
    index["text_encoder_2"] = ["my_unet", "CLIPTextModelWithProjection"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match=r"my_unet\.CLIPTextModelWithProjection.*never run"):
        gate.load_backbone(str(copy))


def test_of_a_processor_the_words_are_read_as_its_tokenizer_file_has_them(tmp_path: Path) -> None:
    """Flux 2's tokenizer is a processor, whose class an Auto class would look up."""
    tokenizer = byte_tokenizer("Qwen2Tokenizer")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    index = {"tokenizer": ["transformers", "PixtralProcessor"]}
    read = load_parts("x", tmp_path, index, ["tokenizer"], torch.float32)["tokenizer"]
    chat = [{"role": "user", "content": "a cat"}]
    for words in ("a red cat", "<|im_start|>", tokenizer.apply_chat_template(chat, tokenize=False)):
        assert read(words).input_ids == tokenizer(words).input_ids
    assert read.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(
        chat, tokenize=False
    )
    assert read.pad_token == tokenizer.pad_token


def test_a_family_names_further_classes() -> None:
    asked = ("x", "text_encoder", "transformers", "GPT2Model")
    with pytest.raises(ConfigurationError, match="not among the classes that gate loads"):
        trusted_class(*asked, frozenset())
    assert trusted_class(*asked, frozenset({"transformers.GPT2Model"})).__name__ == "GPT2Model"


def test_every_class_of_the_list_is_one_and_none_is_an_auto_class() -> None:
    import transformers

    for library, every in CLASSES.items():
        assert not [cls for cls in every if cls.startswith("Auto") and not cls.startswith("Autoencoder")]
        if library == "transformers":
            models = [getattr(transformers, cls, None) for cls in every]
            assert (
                sum(model is not None for model in models) >= len(models) - 2
            )  # MT5's are gone since version 5


def test_half_precision_only_is_loaded_as_that(copy: Path) -> None:
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for file in (copy / part).glob("*.safetensors"):
            file.rename(file.with_suffix(".fp16.safetensors"))
    assert gate.load_backbone(str(copy), device="cpu", dtype="float32").family == "sdxl"


def test_the_vae_stays_in_float32_where_half_precision_breaks_it(folder: Path, tmp_path: Path) -> None:
    backbone: Any = gate.load_backbone(str(folder), device="cpu", dtype="float16")
    assert backbone.vae.dtype == torch.float32 and backbone.denoiser.dtype == torch.float16
    (tmp_path / "config.json").write_text(json.dumps({"force_upcast": False}))
    assert vae_dtype(tmp_path, torch.float16) == torch.float16
    assert vae_dtype(tmp_path, torch.bfloat16) == torch.bfloat16


def test_offloaded_parts_give_the_same_bits(folder: Path) -> None:
    plain, offloaded = (
        gate.load_backbone(str(folder), device="cpu", dtype="float32", offload=o) for o in (False, True)
    )
    a, b = (x.encode_prompts(["a cat"]).prompt_embeds for x in (plain, offloaded))
    assert torch.equal(a, b)


def test_the_image_size_can_be_chosen(folder: Path) -> None:
    assert gate.load_backbone(str(folder), device="cpu", image_size=128).image_size == 128
    with pytest.raises(UsageError, match="a multiple of 4, not 62 px"):
        gate.load_backbone(str(folder), device="cpu", image_size=62)


FILES = [
    "model_index.json",
    "README.md",
    "sd_xl_base.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/model.onnx",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "text_encoder_2/model.safetensors",
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "safety_checker/model.safetensors",
]


def test_only_what_a_backbone_needs_is_fetched() -> None:
    small = {"model_index.json", "unet/config.json", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt"}
    assert set(hub.wanted_files(FILES, weights=False)) == small
    assert set(hub.wanted_files(FILES)) - small == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "text_encoder_2/model.safetensors",
    }
    lora = ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "README.md"]
    assert hub.wanted_files(lora) == ["pytorch_lora_weights.safetensors"]


def _hub_cache(folder: Path, root: Path, name: str) -> Path:
    """The hub's cache with one snapshot."""
    repository = root / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return repository / "snapshots" / "abc"


def test_a_cached_model_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = _hub_cache(folder, tmp_path, "someone/model")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "fetch", lambda *a, **k: pytest.fail("asked the network"))
    assert gate.load_backbone("someone/model", device="cpu").family == "sdxl"
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    said = r"lacks vae/diffusion_pytorch_model\.safetensors here.*gate download someone/model"
    with pytest.raises(MissingWeightsError, match=said):
        gate.load_backbone("someone/model", device="cpu")


def test_a_gated_model_names_its_licence_page(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    def raising(error: type[Exception]) -> Any:
        class Refusal(error):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                Exception.__init__(self, "no")  # the hub's own wants a response of its HTTP library

            def __str__(self) -> str:
                return "no"

        def info(*args: Any, **kwargs: Any) -> None:
            raise Refusal

        return info

    monkeypatch.setattr(HfApi, "model_info", raising(GatedRepoError))
    with pytest.raises(MissingWeightsError, match=r"https://huggingface\.co/someone/gated.*gate download"):
        hub.fetch("someone/gated")
    monkeypatch.setattr(HfApi, "model_info", raising(RevisionNotFoundError))
    with pytest.raises(UsageError, match="no revision 'v9'"):
        hub.fetch("someone/model", "v9")


def test_a_single_file_is_its_pipeline(tmp_path: Path) -> None:
    """The same weights in one file give the same bits: keys as diffusers names them, the text encoder's as LDM's."""
    from safetensors.torch import load_file, save_file

    folder = build("unet", tmp_path / "pipeline")
    state = unet_keys(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"), blocks=2, resnets=1)
    state |= vae_keys(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"), blocks=3)
    text = load_file(folder / "text_encoder" / "model.safetensors")
    head = "" if next(iter(text)).startswith("text_model.") else "text_model."
    state |= {f"cond_stage_model.transformer.{head}{key}": value for key, value in text.items()}
    save_file(state, tmp_path / "one.safetensors")
    one, many = (
        gate.load_backbone(str(path), device="cpu", dtype="float32", pipeline=str(folder))
        for path in (tmp_path / "one.safetensors", folder)
    )
    for part, module in many.components.items():
        theirs = one.components[part].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items())
    assert len(one.fingerprint()) == 16 and one.family == many.family == "unet"


def test_a_single_file_that_says_nothing_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises((UsageError, MissingWeightsError), match="--pipeline|gate download"):
        gate.load_backbone(str(tmp_path / "odd.safetensors"))


def test_download_and_doctor_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copy: Path
) -> None:
    from huggingface_hub import constants

    done = CliRunner().invoke(app, ["download", "someone/model"])
    assert done.exit_code == 5 and "gate download someone/model" in done.output
    assert CliRunner().invoke(app, ["download", "tiny"]).exit_code == 2
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    _hub_cache(copy, tmp_path / "cache", "someone/model")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, ["doctor", "--format", "json"])
    rows = {row["name"]: row for row in json.loads(done.output)}
    assert (
        done.exit_code == 0 and rows["tiny"]["state"] == "ok" and rows["torch"]["detail"] == torch.__version__
    )
    assert rows["someone/model"]["todo"] == "gate download someone/model"
    assert "unet/diffusion_pytorch_model.safetensors" in rows["someone/model"]["detail"]


def test_doctor_finds_a_broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from gate import registry

    broken = registry.Plugin("odd", "probe", "odd:Odd", "odd-package", None, "ImportError: no")
    real = registry.plugins

    def plugins(kind: Any) -> dict[str, registry.Plugin]:
        return {**real(kind), **({"odd": broken} if kind == "probe" else {})}

    monkeypatch.setattr(registry, "plugins", plugins)
    done = CliRunner().invoke(app, ["doctor", "--format", "json"])
    row = next(r for r in json.loads(done.output) if r["name"] == "probe odd")
    assert done.exit_code == 3 and row["state"] == "broken" and "pip uninstall odd-package" in row["todo"]
