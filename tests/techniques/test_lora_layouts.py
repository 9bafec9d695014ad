"""Every public layout of a LoRA gives the weights that diffusers' own pipeline gives: to 1e-6."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import build
from torch import Tensor

import gate
from gate.adapters.merge import lora_weights
from gate.backbone import Backbone
from gate.errors import MissingWeightsError

RANK, ALPHA = 3, 6.0
LINEAR = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("unet", tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return gate.load_backbone(str(folder), device="cpu", dtype="float32")


def _factors(
    backbone: Backbone, paths: tuple[str, ...], part: str = "unet"
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """{path: (A, B, a magnitude for each output)}."""
    g = torch.Generator().manual_seed(len(part))
    modules = dict(backbone.components[part].named_modules())
    found = {}
    for path in paths:
        weight: Any = next(m for name, m in modules.items() if name.endswith(path)).weight
        out, inner, *kernel = weight.shape
        a = 0.2 * torch.randn(RANK, inner, *kernel, generator=g)
        b = torch.randn(out, RANK, *([1] * len(kernel)), generator=g)
        found[path] = (a, b, 1 + torch.rand(out, *([1] * (weight.ndim - 1)), generator=g))
    return found


def _older(backbone: Backbone) -> State:
    """Diffusers' names before it knew peft."""
    state: State = {}
    for path, (a, b, _) in _factors(backbone, (LINEAR, OUT)).items():
        state |= {f"unet.{path}.lora.down.weight": a, f"unet.{path}.lora.up.weight": b}
    return state


def _diffusers(backbone: Backbone) -> State:
    state: State = {}
    for path, (a, b, _) in _factors(backbone, (LINEAR, OUT, CONV)).items():
        state |= {f"unet.{path}.lora_A.weight": a, f"unet.{path}.lora_B.weight": b}
    for path, (a, b, _) in _factors(backbone, TEXT, "text_encoder").items():
        name = next(n for n, _ in backbone.components["text_encoder"].named_modules() if n.endswith(path))
        state |= {f"text_encoder.{name}.lora_A.weight": a, f"text_encoder.{name}.lora_B.weight": b}
    return state


def _kohya(backbone: Backbone) -> State:
    heads = {
        f"lora_unet_{path.replace('.', '_')}": f
        for path, f in _factors(backbone, (LINEAR, OUT, CONV)).items()
    }
    for path, f in _factors(backbone, TEXT, "text_encoder").items():
        heads[f"lora_te_text_model_{path.replace('.', '_')}"] = f
    state: State = {}
    for head, (a, b, _) in heads.items():
        state |= {
            f"{head}.lora_down.weight": a,
            f"{head}.lora_up.weight": b,
            f"{head}.alpha": torch.tensor(ALPHA),
        }
    return state


def _dora(backbone: Backbone) -> State:
    """Kohya's names of DoRA (Liu et al. 2024): a magnitude for each output beside the two factors."""
    state: State = {}
    for path, (a, b, magnitude) in _factors(backbone, (LINEAR, OUT)).items():
        head = f"lora_unet_{path.replace('.', '_')}"
        state |= {
            f"{head}.lora_down.weight": a,
            f"{head}.lora_up.weight": b,
            f"{head}.alpha": torch.tensor(ALPHA),
        }
        state[f"{head}.dora_scale"] = magnitude
    return state


def _own(folder: Path, file: Path) -> State:
    """What diffusers' pipeline makes of its weights when it loads and fuses the file."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="x")
    pipeline.fuse_lora(lora_scale=1.0)
    pipeline.unload_lora_weights()
    return {
        f"{part}.{key}": value.detach()
        for part in ("unet", "text_encoder")
        for key, value in getattr(pipeline, part).named_parameters()
    }


LAYOUTS: dict[str, tuple[Callable[[Backbone], State], int]] = {
    "diffusers": (_diffusers, 5),
    "diffusers, older": (_older, 2),
    "kohya": (_kohya, 5),
    "DoRA": (_dora, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_is_what_diffusers_makes_of_it(
    layout: str, backbone: Backbone, folder: Path, tmp_path: Path
) -> None:
    write, layers = LAYOUTS[layout]
    file = tmp_path / "style.safetensors"
    save_file(write(backbone), file)
    found, theirs = lora_weights(backbone, str(file), "", 1.0), _own(folder, file)
    assert len(found) == layers
    for part, module in backbone.components.items():
        for key, value in module.named_parameters():
            name = f"{part}.{key}"
            assert float((found.get(name, value) - theirs[name]).abs().max()) <= 1e-6, name
            assert (name in found) == (not torch.equal(value, theirs[name])), name


def test_what_peft_saves_is_what_peft_merges(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    """adapter_model.safetensors and adapter_config.json, with another rank and alpha for one layer."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model

    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    config = LoraConfig(
        r=RANK,
        lora_alpha=5,
        target_modules=["to_k", "conv1"],
        rank_pattern={"conv1": 2},
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    wrapped = get_peft_model(unet, config)
    wrapped.save_pretrained(tmp_path)
    theirs = dict(wrapped.merge_and_unload().named_parameters())
    found = lora_weights(backbone, str(tmp_path), "", 1.0)
    assert len(found) > 10
    for key, value in backbone.denoiser.named_parameters():  # type: ignore[union-attr]
        assert float((found.get(f"unet.{key}", value) - theirs[key]).abs().max()) <= 1e-6, key
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"no readable .*adapter_config\.json"):
        lora_weights(backbone, str(tmp_path), "", 1.0)
