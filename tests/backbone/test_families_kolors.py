"""Kolors: real UNet and ChatGLM, but a tokenizer of letters, since its own reads a sentencepiece vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import UNET, ddpm, vae

from gate.backbone import Backbone
from gate.backbone.families.kolors import Kolors
from gate.backbone.pipeline import find_family

HIDDEN = 16
INDEX = {
    "_class_name": "KolorsPipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["kolors", "ChatGLMModel"],
    "tokenizer": ["kolors", "ChatGLMTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "force_zeros_for_empty_prompt": False,
}


class Letters:
    """Pads on the left, as ChatGLM's tokenizer does."""

    def __call__(self, texts: Any, *, max_length: int, **_: Any) -> Any:
        from transformers import BatchEncoding

        rows = [[ord(c) % 60 + 1 for c in text] for text in ([texts] if isinstance(texts, str) else texts)]
        pad = [max_length - len(row) for row in rows]
        read = {
            "input_ids": [[0] * p + row for p, row in zip(pad, rows, strict=True)],
            "attention_mask": [[0] * p + [1] * len(row) for p, row in zip(pad, rows, strict=True)],
            "position_ids": [[0] * p + list(range(len(row))) for p, row in zip(pad, rows, strict=True)],
        }
        return BatchEncoding({k: torch.tensor(v) for k, v in read.items()})


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    torch.manual_seed(0)
    text = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=64,
        hidden_size=HIDDEN,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=2,
        seq_length=256,
        rmsnorm=True,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=1,
        post_layer_norm=True,
        original_rope=True,
    )
    unet = UNet2DConditionModel(
        **UNET,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=24,
        encoder_hid_dim=HIDDEN,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + HIDDEN,
    )
    encoder = ChatGLMModel(text)
    for name, weight in encoder.named_parameters():  # it leaves its weights as memory had them
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.05)
    return {"vae": vae(), "text_encoder": encoder, "tokenizer": Letters(), "unet": unet}


@pytest.fixture(scope="module")
def backbone(parts: dict[str, Any]) -> Backbone:
    config = {**ddpm().config, "_class_name": "DDPMScheduler"}
    cpu = torch.device("cpu")
    return Kolors("kolors", Path(), INDEX, {**parts, "scheduler": config}, device=cpu, dtype=torch.float32)


def test_kolors_is_found_by_its_text_encoder() -> None:
    assert find_family("x", INDEX) is Kolors


def test_a_call_is_what_the_pipeline_itself_makes(backbone: Any, parts: dict[str, Any]) -> None:
    from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    pipeline = KolorsPipeline(**parts, scheduler=ddpm())
    pipeline.set_progress_bar_config(disable=True)
    seen: list[Any] = []
    handle = pipeline.unet.register_forward_hook(lambda m, a, k, o: seen.append((a, k, o)), with_kwargs=True)
    size = {"height": 64, "width": 64}
    pipeline("a cat", num_inference_steps=1, guidance_scale=1.0, output_type="latent", **size)
    handle.remove()
    (x, t), _, output = seen[0]
    given = backbone.encode_prompts(["a cat"])
    with torch.no_grad():
        ours = backbone.call(x, t.reshape(1), given, _request(backbone))
    assert float((ours - output[0]).abs().max()) == 0.0


def _request(backbone: Backbone) -> Any:
    from gate.data import load_data

    return backbone.batch(load_data("scenes-held-out", n=1, size=64).samples).request(50, 0)
