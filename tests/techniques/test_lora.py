"""A LoRA in every public layout gives W + scale alpha / rank B A, and leaves the backbone as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gate.adapters.merge import lora_weights
from gate.backbone import Backbone
from gate.errors import ConfigurationError, MissingWeightsError, UnsuitableError, UsageError
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.testing import check_technique

RANK, ALPHA = 3, 6.0
LAYERS = {
    path: path.replace(".", "_")  # kohya's name for it
    for path in (
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
    )
}


def factors(backbone: Backbone) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{path: (A, B)}, A (rank, in), B (out, rank)."""
    g = torch.Generator().manual_seed(0)
    found = {}
    for path in LAYERS:
        out, inner = backbone.denoiser.get_submodule(path).weight.shape  # type: ignore[union-attr, misc]
        found[path] = (0.05 * torch.randn(RANK, inner, generator=g), torch.randn(out, RANK, generator=g))
    return found


def diffusers_layout(backbone: Backbone, file: Path) -> None:
    state = {}
    for path, (a, b) in factors(backbone).items():
        state |= {f"unet.{path}.lora_A.weight": a, f"unet.{path}.lora_B.weight": b}
        state[f"unet.{path}.alpha"] = torch.tensor(ALPHA)
    save_file(state, file)


def kohya_layout(backbone: Backbone, file: Path) -> None:
    state = {}
    for path, (a, b) in factors(backbone).items():
        head = f"lora_unet_{LAYERS[path]}"
        state |= {
            f"{head}.lora_down.weight": a,
            f"{head}.lora_up.weight": b,
            f"{head}.alpha": torch.tensor(ALPHA),
        }
    save_file(state, file)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_kohyas_layout_is_the_formula(tiny: Backbone, tmp_path: Path, scale: float) -> None:
    file = tmp_path / "style.safetensors"
    kohya_layout(tiny, file)
    technique = create_technique("lora", weights=str(file), scale=scale)
    own = {p: tiny.denoiser.get_submodule(p).weight for p in LAYERS}
    before = {p: w.detach().clone() for p, w in own.items()}  # type: ignore[operator, union-attr]
    with technique.attach(tiny):
        for path, (a, b) in factors(tiny).items():
            expected = before[path] + scale * ALPHA / RANK * b @ a
            torch.testing.assert_close(own[path].data, expected, rtol=1e-4, atol=1e-4)
    for path in LAYERS:
        assert torch.equal(own[path], before[path])  # type: ignore[arg-type]


def test_diffusers_layout_changes_the_text_encoder_and_its_prompts_for_a_while(
    tiny: Backbone, tmp_path: Path
) -> None:
    g = torch.Generator().manual_seed(1)
    modules = dict(tiny.components["text_encoder"].named_modules())
    text = next(name for name in modules if name.endswith("layers.0.self_attn.q_proj"))
    width = modules[text].weight.shape[0]  # type: ignore[index, union-attr]
    state = {
        f"text_encoder.{text}.lora_A.weight": torch.randn(RANK, width, generator=g),
        f"text_encoder.{text}.lora_B.weight": torch.randn(width, RANK, generator=g),
    }
    for path, (a, b) in factors(tiny).items():
        state |= {f"unet.{path}.lora_A.weight": a, f"unet.{path}.lora_B.weight": b}
    save_file(state, tmp_path / "pytorch_lora_weights.safetensors")
    usual = tiny.encode_prompts(["a bird"]).prompt_embeds
    with create_technique("lora", weights=str(tmp_path)).attach(tiny):
        assert not torch.equal(tiny.encode_prompts(["a bird"]).prompt_embeds, usual)
    assert torch.equal(tiny.encode_prompts(["a bird"]).prompt_embeds, usual)


def test_kohyas_layout_reaches_the_text_encoder(tiny: Backbone, tmp_path: Path) -> None:
    """`lora_te_text_model_encoder_...`, whatever transformers calls the module today."""
    g = torch.Generator().manual_seed(2)
    modules = dict(tiny.components["text_encoder"].named_modules())
    state, weights = {}, {}
    for layer in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1"):
        name = next(n for n in modules if n.endswith(f"layers.0.{layer}"))
        out, inner = modules[name].weight.shape  # type: ignore[misc, union-attr]
        a, b = torch.randn(RANK, inner, generator=g), torch.randn(out, RANK, generator=g)
        head = f"lora_te_text_model_encoder_layers_0_{layer.replace('.', '_')}"
        state |= {
            f"{head}.lora_down.weight": a,
            f"{head}.lora_up.weight": b,
            f"{head}.alpha": torch.tensor(ALPHA),
        }
        weights[name] = modules[name].weight.detach() + ALPHA / RANK * b @ a  # type: ignore[operator]
    save_file(state, tmp_path / "words.safetensors")
    with create_technique("lora", weights=str(tmp_path / "words.safetensors")).attach(tiny):
        for name, expected in weights.items():
            torch.testing.assert_close(modules[name].weight.data, expected, rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]


def test_the_contract_holds(tiny: Backbone, scenes: SampleSet, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    kohya_layout(tiny, file)
    report = check_technique(create_technique("lora", weights=str(file)), tiny, scenes[:3])
    assert report.ok, str(report)


def test_a_zero_keeps_its_sign_where_a_lora_adds_nothing(tiny: Backbone, tmp_path: Path) -> None:
    """-0 + 0 is +0 and equal to it: restored to the bit all the same."""
    silent, *_ = LAYERS
    state = {}
    for path, (a, b) in factors(tiny).items():
        a, b = (torch.ones_like(a), torch.zeros_like(b)) if path == silent else (a, b)
        state |= {f"unet.{path}.lora_A.weight": a, f"unet.{path}.lora_B.weight": b}
    file = tmp_path / "style.safetensors"
    save_file(state, file)
    weight: torch.Tensor = tiny.denoiser.get_submodule(silent).weight.data  # type: ignore[assignment, union-attr]
    kept = weight[0, 0].item()
    try:
        weight[0, 0] = -0.0
        with create_technique("lora", weights=str(file)).attach(tiny):
            pass
        assert weight[0, 0].item() == 0 and torch.signbit(weight[0, 0])
    finally:
        weight[0, 0] = kept


def test_missing_and_wrong_weights_are_one_sentence(
    tiny: Backbone, scenes: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "name", "another")
    with pytest.raises(UnsuitableError) as none:
        create_technique("lora").check(tiny, scenes)
    assert "gate fit lora" in none.value.fix
    cases: list[tuple[str, type[Exception], str]] = [
        ("no/such/file.safetensors", UsageError, "neither a file"),
        ("somebody/some-lora", MissingWeightsError, "hf download"),
        (str(tmp_path), MissingWeightsError, "weight_name"),
    ]
    pickled = tmp_path / "weights.bin"
    pickled.write_bytes(b"x")
    cases.append((str(pickled), UsageError, "never loaded"))
    other = tmp_path / "other.safetensors"
    save_file({"unet.no.such.layer.lora_A.weight": torch.zeros(2, 2)}, other)
    cases.append((str(other), ConfigurationError, "LoRA|nothing"))
    for source, error, text in cases:
        with pytest.raises(error, match=text), create_technique("lora", weights=source).attach(tiny):
            pass


def _halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    lost = next(key for key in state if "lora_up" in key or "lora_B" in key)
    return {key: value for key, value in state.items() if key != lost}


def _elsewhere(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    one = next(key for key in state if "lora_down" in key or "lora_A" in key)
    key = one.replace("up_blocks", "no_blocks").replace("down_blocks", "no_blocks")
    other = key.replace("lora_down", "lora_up").replace("lora_A", "lora_B")
    return {**state, key: state[one].clone(), other: state[one].T.contiguous()}


def _bent(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, next(key for key in state if "lora_up" in key or "lora_B" in key): torch.zeros(2, 2)}


@pytest.mark.parametrize("layout", [kohya_layout, diffusers_layout])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_halved, r"lora_up.*missing; fetch it again|lacks unet.*lora_B.*fetch it again"),
        (_elsewhere, r"has weights for no.blocks.*, which the unet of tiny does not have.*another backbone"),
        (_bent, r"is no LoRA for tiny: size mismatch for .*attn"),
    ],
)
def test_a_broken_lora_is_one_sentence_and_nothing_of_it_is_left_out(
    tiny: Backbone, tmp_path: Path, layout: Any, damage: Any, said: str
) -> None:
    file = tmp_path / "style.safetensors"
    layout(tiny, file)
    save_file(damage(load_file(file)), file)
    before = {key: value.clone() for key, value in tiny.denoiser.state_dict().items()}
    with pytest.raises(ConfigurationError, match=said):
        lora_weights(tiny, str(file), "", 1.0)
    assert all(torch.equal(value, before[key]) for key, value in tiny.denoiser.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_a_cut_lora_is_said_to_be_one(tiny: Backbone, tmp_path: Path, share: float) -> None:
    file = tmp_path / "style.safetensors"
    kohya_layout(tiny, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ConfigurationError, match=r"style\.safetensors.* is cut short.*fetch that file again"):
        lora_weights(tiny, str(file), "", 1.0)


def test_a_pickled_lora_says_how_it_is_converted(tiny: Backbone, tmp_path: Path) -> None:
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"pickled weights \(pytorch_lora_weights\.bin\).*save_file"):
        lora_weights(tiny, str(tmp_path), "", 1.0)


def test_the_module_that_a_lora_s_metadata_names_is_not_imported(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft imports what `megatron_core` says, and a safetensors file says it in its header."""
    from peft.tuners.lora import tp_layer

    (tmp_path / "planted_core.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').write('ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tp_layer, "get_default_module_allowlist", lambda: ["planted_core"], raising=False)
    state = {
        f"unet.{path}.lora_{side}.weight": value
        for path, pair in factors(tiny).items()
        for side, value in zip("AB", pair, strict=True)
    }
    facts = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(LAYERS), "megatron_config": {"a": 1}}
    header = {f"unet.{key}": value for key, value in {**facts, "megatron_core": "planted_core.x"}.items()}
    file = tmp_path / "evil.safetensors"
    save_file(state, file, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(header)})
    found = lora_weights(tiny, str(file), "", 1.0)
    assert set(found) == {f"unet.{path}.weight" for path in LAYERS} and not (tmp_path / "marker").exists()
    for path, (a, b) in factors(tiny).items():
        own = tiny.denoiser.get_submodule(path).weight  # type: ignore[union-attr]
        torch.testing.assert_close(found[f"unet.{path}.weight"], own + ALPHA / RANK * b @ a)
