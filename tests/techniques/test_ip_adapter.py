"""IP-Adapter in the layouts of the public repository: the plain kind and Plus, their encoder beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gate.backbone import Backbone
from gate.errors import ConfigurationError, UnsuitableError
from gate.passes import single_pass
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import SampleSet
from gate.testing import check_technique

EMBEDDING, HIDDEN = 24, 64


def attention_state(backbone: Backbone, g: torch.Generator) -> dict[str, torch.Tensor]:
    """ip_adapter.1, .3, ... as the public files number them: processors in diffusers' order, two per transformer."""
    unet: Any = backbone.denoiser
    names = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    state = {}
    for i, name in enumerate(names):
        shape = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        for part in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * i + 1}.{part}.weight"] = 0.1 * torch.randn(shape, generator=g)
    return state


def plain_projection(width: int, g: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "image_proj.proj.weight": torch.randn(4 * width, EMBEDDING, generator=g),
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }


def plus_projection(width: int, g: torch.Generator) -> dict[str, torch.Tensor]:
    """A resampler of four layers, 64 wide (one head), 16 image tokens."""
    layer = {
        "0.norm1.weight": (64,), "0.norm1.bias": (64,), "0.norm2.weight": (64,), "0.norm2.bias": (64,),
        "0.to_q.weight": (64, 64), "0.to_kv.weight": (128, 64), "0.to_out.weight": (64, 64),
        "1.0.weight": (64,), "1.0.bias": (64,), "1.1.weight": (256, 64), "1.3.weight": (64, 256),
    }  # fmt: skip
    shapes = {
        "latents": (1, 16, 64), "proj_in.weight": (64, HIDDEN), "proj_in.bias": (64,),
        "proj_out.weight": (width, 64), "proj_out.bias": (width,),
        "norm_out.weight": (width,), "norm_out.bias": (width,),
        **{f"layers.{i}.{key}": shape for i in range(4) for key, shape in layer.items()},
    }  # fmt: skip
    return {f"image_proj.{k}": 0.1 * torch.randn(v, generator=g) for k, v in shapes.items()}


def save_public(folder: Path, backbone: Backbone, projection: Any, name: str) -> str:
    """models/NAME.safetensors beside models/image_encoder, which has no preprocessor_config.json."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    g = torch.Generator().manual_seed(0)
    width = backbone.denoiser.config.cross_attention_dim  # type: ignore[union-attr]
    (folder / "models").mkdir(parents=True, exist_ok=True)
    save_file({**projection(width, g), **attention_state(backbone, g)}, folder / "models" / name)
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
            patch_size=8, projection_dim=EMBEDDING,
        )
    ).save_pretrained(folder / "models" / "image_encoder")  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module")
def repository(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ip")
    save_public(folder, tiny, plus_projection, "ip-adapter-plus_sd15.safetensors")
    return save_public(folder, tiny, plain_projection, "ip-adapter_sd15.safetensors")


@pytest.fixture()
def batch(tiny: Backbone, scenes: SampleSet) -> Batch:
    return tiny.batch(scenes[:2].samples, everyone=scenes)


def prediction(name: str, batch: Batch, **settings: object) -> torch.Tensor:
    technique = create_technique(name, **settings)
    with torch.no_grad(), technique.attach(batch.backbone):
        conditioning = technique.condition(batch.neutral, batch)
        return single_pass(technique, batch.request(300, 0, conditioning), ("up1",)).prediction


@pytest.mark.parametrize("file", ["ip-adapter_sd15.safetensors", "ip-adapter-plus_sd15.safetensors"])
def test_the_contract_holds_in_both_layouts(
    file: str, repository: str, tiny: Backbone, scenes: SampleSet
) -> None:
    technique = create_technique("ip-adapter", weights=repository, weight_name=f"models/{file}")
    report = check_technique(technique, tiny, scenes[:3])
    assert report.ok, str(report)


def test_it_is_the_formula(repository: str, batch: Batch) -> None:
    """One cross-attention by hand: softmax(Q K^T) V + scale softmax(Q K_ip^T) V_ip (Ye et al. 2023, Eq. 5)."""
    technique: Any = create_technique(
        "ip-adapter", weights=f"{repository}/models/ip-adapter_sd15.safetensors", scale=0.7
    )
    unet: Any = batch.backbone.denoiser
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    attention, heads = unet.get_submodule(name), unet.get_submodule(name).heads
    x = torch.randn(2, 9, attention.to_q.in_features)
    with torch.no_grad(), technique.attach(batch.backbone):
        image = technique.condition(batch.neutral, batch).image_embeds
        tokens = unet.encoder_hid_proj([image])[0]
        text, ip = batch.neutral.prompt_embeds, tokens.reshape(2, 4, -1)
        processor = attention.processor
        got = attention(x, encoder_hidden_states=(text, [tokens]))

        def attend(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (attention.to_q(x), k, v))
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            return (weights @ v).transpose(1, 2).flatten(2)

        both = attend(attention.to_k(text), attention.to_v(text)) + 0.7 * attend(
            processor.to_k_ip[0](ip), processor.to_v_ip[0](ip)
        )
        expected = attention.to_out[0](both)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_image_matters_and_survives_a_guiders_other_prompts(repository: str, batch: Batch) -> None:
    weights = f"{repository}/models/ip-adapter_sd15.safetensors"
    plain, prompted = prediction("prompt", batch), prediction(f"ip-adapter[weights={weights}]", batch)
    assert not torch.allclose(plain, prompted, atol=1e-4)
    guided = prediction(f"ip-adapter[weights={weights}]+guidance-cfg", batch)
    assert torch.isfinite(guided).all() and not torch.allclose(guided, prompted)


def test_a_call_without_an_image_sees_zeros(repository: str, batch: Batch) -> None:
    technique = create_technique("ip-adapter", weights=f"{repository}/models/ip-adapter_sd15.safetensors")
    with torch.no_grad(), technique.attach(batch.backbone):
        zeros = torch.zeros_like(technique.condition(batch.neutral, batch).image_embeds)  # type: ignore[arg-type]
        without = batch.backbone.denoise(batch.request(300, 0)).prediction
        with_zeros = batch.backbone.denoise(
            batch.request(300, 0, batch.neutral.replace(image_embeds=zeros))
        ).prediction
    assert torch.equal(without, with_zeros)


def test_missing_and_foreign_weights(
    tiny: Backbone, scenes: SampleSet, repository: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsuitableError, match="hf download somebody/ip ip-adapter.safetensors"):
        create_technique("ip-adapter", weights="somebody/ip").check(tiny, scenes)
    alone = tmp_path / "ip-adapter.safetensors"
    alone.write_bytes((Path(repository) / "models" / "ip-adapter_sd15.safetensors").read_bytes())
    with pytest.raises(UnsuitableError, match="image encoder"):
        create_technique("ip-adapter", weights=str(tmp_path)).check(tiny, scenes)
    (Path(repository) / "models" / "other.safetensors").write_bytes(b"")
    save_file(plain_projection(8, torch.Generator()), Path(repository) / "models" / "other.safetensors")
    with pytest.raises(ConfigurationError, match="no IP-Adapter for tiny"):
        create_technique("ip-adapter", weights=f"{repository}/models/other.safetensors").check(tiny, scenes)
    assert tiny.denoiser.encoder_hid_proj is None
