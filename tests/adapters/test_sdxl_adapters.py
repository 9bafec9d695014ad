"""The public kinds of weights on Stable Diffusion XL's topology: ControlNet, T2I-Adapter, IP-Adapter, LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import build

import gate
from gate.backbone import Backbone
from gate.data import load_data
from gate.errors import ConfigurationError
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.testing import check_technique


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return gate.load_backbone(
        str(build("sdxl", tmp_path_factory.mktemp("xl"))), device="cpu", dtype="float32"
    )


@pytest.fixture(scope="module")
def samples(xl: Backbone) -> SampleSet:
    return load_data("scenes-held-out", n=3, size=xl.image_size)


def controlnet(xl: Any, folder: Path) -> str:
    """Its time embedding takes the pooled text and the sizes, as the denoiser's does."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    halvings = (xl.image_size // xl.denoiser.config.sample_size).bit_length() - 1
    net = ControlNetModel.from_unet(
        xl.denoiser, conditioning_embedding_out_channels=(16, 32, 96, 256)[: halvings + 1]
    )
    with torch.no_grad():
        for parameter in (*net.controlnet_mid_block.parameters(), *net.controlnet_down_blocks.parameters()):
            parameter.normal_(0, 0.1)
    net.save_pretrained(folder)
    return f"controlnet[weights={folder}]"


def t2i_adapter(xl: Any, folder: Path) -> str:
    from diffusers import T2IAdapter

    config = (
        xl.denoiser.config
    )  # the first block of SDXL has no attention: the adapter starts after its downsampler
    factor = 2 * xl.image_size // config.sample_size
    T2IAdapter(
        channels=list(config.block_out_channels), downscale_factor=factor, adapter_type="full_adapter_xl"
    ).save_pretrained(folder)
    return f"t2i-adapter[weights={folder}]"


def ip_adapter(xl: Any, folder: Path) -> str:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    g = torch.Generator().manual_seed(0)
    width, unet = xl.denoiser.config.cross_attention_dim, xl.denoiser
    state = {
        "image_proj.proj.weight": torch.randn(4 * width, 24, generator=g),
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    names = [n.removesuffix(".processor") for n in unet.attn_processors if n.endswith("attn2.processor")]
    for i, name in enumerate(names):
        for part in ("k", "v"):
            like = unet.get_submodule(f"{name}.to_{part}").weight
            state[f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight"] = torch.randn(like.shape, generator=g)
    save_file(state, folder / "ip-adapter_sdxl.safetensors")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32,
            patch_size=8, projection_dim=24,
        )
    ).save_pretrained(folder / "image_encoder")  # fmt: skip
    return f"ip-adapter[weights={folder}/ip-adapter_sdxl.safetensors]"


def lora(xl: Any, folder: Path) -> str:
    """diffusers' layout, with both text encoders."""
    g = torch.Generator().manual_seed(0)
    state = {}
    parts = {"unet": xl.denoiser, "text_encoder": xl.text_encoder, "text_encoder_2": xl.text_encoder_2}
    for part, module in parts.items():
        tail = "attn1.to_q" if part == "unet" else "self_attn.q_proj"
        name, layer = next((n, m) for n, m in module.named_modules() if n.endswith(tail))
        out, inner = layer.weight.shape
        state[f"{part}.{name}.lora_A.weight"] = torch.randn(3, inner, generator=g)
        state[f"{part}.{name}.lora_B.weight"] = torch.randn(out, 3, generator=g)
    save_file(state, folder / "pytorch_lora_weights.safetensors")
    return f"lora[weights={folder}]"


@pytest.mark.parametrize("make", [controlnet, t2i_adapter, ip_adapter, lora])
def test_the_contract_holds_and_features_change(
    make: Any, xl: Backbone, samples: SampleSet, tmp_path: Path
) -> None:
    name = make(xl, tmp_path)
    report = check_technique(name, xl, samples)
    assert report.ok, str(report)
    changed, plain = (xl.extract(samples[:1].samples, technique=t) for t in (name, ""))
    assert any(not torch.equal(changed[k], plain[k]) for k in plain)


def test_a_lora_reaches_all_three_parts(xl: Backbone, tmp_path: Path) -> None:
    technique: Any = create_technique(lora(xl, tmp_path))
    heads = {key.partition(".")[0] for key in technique._load(xl)}
    assert heads == {"unet", "text_encoder", "text_encoder_2"}


def test_fitting_on_it_is_refused_with_a_sentence(xl: Backbone, samples: SampleSet) -> None:
    from gate.fit import make_fit_config
    from gate.fit.trainer import create_trainer

    config = make_fit_config({"name": "lora", "data": "scenes-held-out", "output": "x"})
    with pytest.raises(ConfigurationError, match="one text encoder"):
        create_trainer(config, xl, samples)
