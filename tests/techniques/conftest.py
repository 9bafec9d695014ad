"""A random pipeline in Stable Diffusion's topology, small enough that a call takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipelines import clip_tokenizer, ddpm, save, vae

import gate
from gate.backbone import Backbone
from gate.data import load_data
from gate.request import Batch
from gate.sample import SampleSet

WIDTH = 32
CHANNELS = (16, 24, 32, 32)


def save_pipeline(folder: Path) -> None:
    """Write vae, text_encoder, tokenizer, unet and scheduler with random weights, as diffusers does."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    parts = {
        "vae": vae(),
        "unet": UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=CHANNELS,
            layers_per_block=2,
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=8,
        ),
        "tokenizer": (tokenizer := clip_tokenizer()),
        "text_encoder": CLIPTextModel(
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
        ),
        "scheduler": ddpm(),
    }
    save(folder, "StableDiffusionPipeline", parts)


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
