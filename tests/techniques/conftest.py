"""A random pipeline in Stable Diffusion's topology, small enough that a call takes milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gate
from gate.backbone import Backbone
from gate.data import load_data
from gate.request import Batch
from gate.sample import SampleSet

WIDTH = 32
CHANNELS = (16, 24, 32, 32)


def save_pipeline(folder: Path) -> None:
    """Write vae, text_encoder, tokenizer, unet and scheduler with random weights, as diffusers does."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    parts = {
        "vae": vae,
        "unet": unet,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for name, part in parts.items():
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The random pipeline through the same loader as any other."""
    folder = tmp_path_factory.mktemp("random-pipeline")
    save_pipeline(folder)
    return gate.load_backbone(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def samples(backbone: Backbone) -> SampleSet:
    """Three captioned and labelled scenes."""
    return load_data("scenes-held-out", n=3, size=backbone.image_size)


@pytest.fixture(scope="session")
def batch(backbone: Backbone, samples: SampleSet) -> Batch:
    """All of them as one batch."""
    return backbone.batch(samples.samples, everyone=samples, class_names=samples.classes)
