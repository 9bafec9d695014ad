"""Small random pipelines that are not quite a family's own: distilled, inpainting, edited, class-labelled, EDM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from small_pipelines import (
    UNET,
    WIDTH,
    clip_encoder,
    clip_tokenizer,
    ddpm,
    flow,
    save,
    t5_encoder,
    t5_tokenizer,
    vae,
)


def text_unet(folder: Path, pipeline: str, scheduler: Any = None, channels: int = 4, **unet: Any) -> Path:
    """Stable Diffusion with another UNet, scheduler or pipeline class."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    options = {**UNET, "in_channels": channels, "out_channels": 4, "cross_attention_dim": WIDTH, **unet}
    parts = {
        "vae": vae(),
        "text_encoder": clip_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel(**options),
        "scheduler": scheduler or ddpm(),
    }
    empty = [None, None]
    return save(
        folder,
        pipeline,
        parts,
        _diffusers_version=diffusers.__version__,
        safety_checker=empty,
        feature_extractor=empty,
    )


def pixel_unet(folder: Path, pipeline: str, scheduler: Any, **unet: Any) -> Path:
    """A UNet without text whose latents are pixels."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    options = {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        **unet,
    }
    return save(folder, pipeline, {"unet": UNet2DModel(**options), "scheduler": scheduler})


def flux_fill(folder: Path, pipeline: str = "FluxFillPipeline", beside: int = 16 + 64) -> Path:
    """Flux with a packed masked image and a mask of 2 x 2 x 4 x 4 channels beside it: 4 px a latent position."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    encoder = vae(shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    transformer = FluxTransformer2DModel(
        in_channels=16 + beside,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    parts = {
        "vae": encoder,
        "text_encoder": clip_encoder(clip),
        "text_encoder_2": t5_encoder(t5),
        "tokenizer": clip,
        "tokenizer_2": t5,
        "transformer": transformer,
        "scheduler": flow(shift=3.0, use_dynamic_shifting=True),
    }
    return save(folder, pipeline, parts)
