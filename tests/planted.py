"""Models that try to run code of their own: pipelines and adapters with a module, or a pickle, that writes a marker."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_pipelines import build

from gate.backbones.hub import EMBEDDED

MODULE = "planted"


class Planted:
    """An object whose pickle writes the marker when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo ran > '{self.marker}'",)


def sow(folder: Path, marker: Path) -> None:
    """The module in every folder, as whatever a loader could look for."""
    text = f"open({str(marker)!r}, 'w').write('ran')\n"
    text += "class Config: pass\nclass Model: pass\nclass Tokenizer: pass\nclass Processor: pass\n"
    for place in (folder, *(d for d in folder.rglob("*") if d.is_dir())):
        (place / f"{MODULE}.py").write_text(text, encoding="utf-8")
        (place / "__init__.py").write_text(text, encoding="utf-8")


def edit(file: Path, **facts: Any) -> None:
    """Keys of a JSON file, set; None takes one away."""
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in {**held, **facts}.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


MODEL = {"AutoConfig": f"{MODULE}.Config", "AutoModel": f"{MODULE}.Model"}
WORDS = {"AutoTokenizer": [f"{MODULE}.Tokenizer", None]}
IMAGES = {"AutoImageProcessor": f"{MODULE}.Processor"}
VISION = {
    **MODEL,
    "AutoModelForImageTextToText": f"{MODULE}.Model",
    "AutoModelForDepthEstimation": f"{MODULE}.Model",
}


def tokenizer_of_its_own(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", tokenizer=["transformers", "AutoTokenizer"])
    edit(at / "tokenizer" / "tokenizer_config.json", auto_map=WORDS, tokenizer_class="Tokenizer")


def processor_of_its_own(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", tokenizer=["transformers", "AutoProcessor"])
    edit(at / "tokenizer" / "processor_config.json", auto_map={"AutoProcessor": f"{MODULE}.Processor"})


def processor_without_a_tokenizer_s_class(at: Path, marker: Path) -> None:
    tokenizer_of_its_own(at, marker)
    edit(at / "model_index.json", tokenizer=["transformers", "EvilProcessor"])


def text_encoder_of_its_own(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", text_encoder_2=["transformers", "AutoModel"])
    edit(at / "text_encoder_2" / "config.json", auto_map=MODEL, model_type="planted")


def text_encoder_in_a_module(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", text_encoder=[MODULE, "Model"])


def denoiser_of_its_own(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", unet=["diffusers", "AutoModel"])
    edit(at / "unet" / "config.json", auto_map=MODEL, _class_name="Model")


def vae_of_its_own(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", vae=["diffusers", "AutoModel"])
    edit(at / "vae" / "config.json", auto_map=MODEL, _class_name="Model")


def scheduler_of_its_own(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", scheduler=[MODULE, "Model"])


def scheduler_that_is_none(at: Path, marker: Path) -> None:
    edit(at / "model_index.json", scheduler=["diffusers", "AutoModel"])


def kernel_from_elsewhere(at: Path, marker: Path) -> None:
    edit(at / "text_encoder" / "config.json", attn_implementation="evil/kernel")


def adapter_beside_a_part(at: Path, marker: Path) -> None:
    edit(
        at / "text_encoder" / "adapter_config.json",
        base_model_name_or_path=str(at / "evil"),
        peft_type="LORA",
    )


REFUSED: dict[str, Callable[[Path, Path], None]] = {
    case.__name__: case
    for case in (
        *(tokenizer_of_its_own, processor_of_its_own, processor_without_a_tokenizer_s_class),
        *(text_encoder_of_its_own, text_encoder_in_a_module, denoiser_of_its_own, vae_of_its_own),
        *(scheduler_of_its_own, scheduler_that_is_none, kernel_from_elsewhere, adapter_beside_a_part),
    )
}


WHY = (
    "not among the classes that gate loads",
    "which no family serves",
    "wants the kernel",
    "brings an adapter",
    "which is no model, tokenizer or scheduler of diffusers or transformers",
    "which is not in diffusers",
)


def beside_what_loads(at: Path, marker: Path) -> None:
    """auto_map everywhere, and classes that need none of it: what is planted is passed over."""
    edit(at / "model_index.json", feature_extractor=[MODULE, "Model"], safety_checker=[MODULE, "Model"])
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        edit(at / part / "config.json", auto_map=MODEL)
    for part in ("tokenizer", "tokenizer_2"):
        edit(at / part / "tokenizer_config.json", auto_map=WORDS)


def pickled(file: Path, marker: Path) -> None:
    """A file of weights that is a pickle, as torch.save writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": Planted(marker)}, file)


def pipeline(at: Path, template: Path, marker: Path, case: Callable[[Path, Path], None]) -> Path:
    """A copy of a small SDXL pipeline, changed by a case, with the module everywhere."""
    shutil.copytree(template, at)
    case(at, marker)
    sow(at, marker)
    return at


def template(folder: Path) -> Path:
    """What `pipeline` copies."""
    return build("sdxl", folder)


# what techniques load: each builds a folder and gives the technique's name


def captioner(at: Path, marker: Path) -> str:
    """Every file names its own class: model, processor, tokenizer."""
    edit(at / "config.json", model_type="planted", auto_map=VISION, architectures=["Model"])
    save_file({"weight": torch.zeros(1)}, at / "model.safetensors", metadata={"format": "pt"})
    edit(at / "preprocessor_config.json", image_processor_type="Processor", auto_map=IMAGES)
    edit(at / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=WORDS)
    return f"caption[model={at}]"


def _blip(at: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shape, "vocab_size": 10, "encoder_hidden_size": 32, "projection_dim": 32, "bos_token_id": 2}
    BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8})
    ).save_pretrained(at)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(at)


def processor_of_a_captioner(at: Path, marker: Path) -> str:
    _blip(at)
    edit(at / "preprocessor_config.json", image_processor_type="Processor", auto_map=IMAGES)
    return f"caption[model={at}]"


def tokenizer_of_a_captioner(at: Path, marker: Path) -> str:
    _blip(at)
    edit(at / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=WORDS)
    return f"caption[model={at}]"


def depth_model(at: Path, marker: Path) -> str:
    captioner(at, marker)
    net = EMBEDDED.parent / "companions" / "controlnet-canny"
    return f"controlnet[controls=depth,weights={net},depth_model={at}]"


def pickled_lora(at: Path, marker: Path) -> str:
    pickled(at / "pytorch_lora_weights.bin", marker)
    return f"lora[weights={at}]"


def pickled_lora_by_name(at: Path, marker: Path) -> str:
    pickled(at / "evil.pt", marker)
    return f"lora[weights={at / 'evil.pt'}]"


def lora_in_disguise(at: Path, marker: Path) -> str:
    pickled(at / "pytorch_lora_weights.safetensors", marker)
    return f"lora[weights={at}]"


def pickled_words(at: Path, marker: Path) -> str:
    pickled(at / "learned_embeds.bin", marker)
    return f"textual-inversion[weights={at / 'learned_embeds.bin'}]"


def words_in_disguise(at: Path, marker: Path) -> str:
    pickled(at / "learned_embeds.safetensors", marker)
    return f"textual-inversion[weights={at}]"


def pickled_cleandift(at: Path, marker: Path) -> str:
    pickled(at / "cleandift_unet.safetensors", marker)
    return f"cleandift[weights={at}]"


def pickled_controlnet(at: Path, marker: Path) -> str:
    edit(at / "config.json", _class_name="ControlNetModel", auto_map=MODEL)
    pickled(at / "diffusion_pytorch_model.bin", marker)
    return f"controlnet[weights={at}]"


def controlnet_in_disguise(at: Path, marker: Path) -> str:
    edit(at / "config.json", _class_name="ControlNetModel", auto_map=MODEL)
    pickled(at / "diffusion_pytorch_model.safetensors", marker)
    return f"controlnet[weights={at}]"


def pickled_t2i_adapter(at: Path, marker: Path) -> str:
    edit(at / "config.json", _class_name="T2IAdapter", auto_map=MODEL)
    pickled(at / "diffusion_pytorch_model.bin", marker)
    return f"t2i-adapter[weights={at}]"


def pickled_ip_adapter(at: Path, marker: Path) -> str:
    pickled(at / "ip-adapter.bin", marker)
    return f"ip-adapter[weights={at / 'ip-adapter.bin'}]"


def image_encoder_of_its_own(at: Path, marker: Path) -> str:
    save_file({"image_proj.proj.weight": torch.zeros(1)}, _made(at) / "ip-adapter.safetensors")
    edit(at / "image_encoder" / "config.json", model_type="planted", auto_map=MODEL, architectures=["Model"])
    pickled(at / "image_encoder" / "pytorch_model.bin", marker)
    return f"ip-adapter[weights={at}]"


def _made(at: Path) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    return at


TECHNIQUES: dict[str, Callable[[Path, Path], str]] = {
    case.__name__: case
    for case in (
        *(captioner, processor_of_a_captioner, tokenizer_of_a_captioner, depth_model),
        *(pickled_lora, pickled_lora_by_name, lora_in_disguise, pickled_words, words_in_disguise),
        *(pickled_cleandift, pickled_controlnet, controlnet_in_disguise, pickled_t2i_adapter),
        *(pickled_ip_adapter, image_encoder_of_its_own),
    )
}
