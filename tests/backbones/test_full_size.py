"""Stable Diffusion 1.5 at full size: random weights in its public configs, screened at 256 px.

Minutes, 2 GB of disk and 6 GB of memory: pytest -m slow -s tests/backbone/test_full_size.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_pipelines import clip_tokenizer, ddpm, save

MEMORY = 7.5  # GiB: a machine of 8 must do


def stable_diffusion_15(folder: Path) -> Path:
    """The modules of stable-diffusion-v1-5, by its config files; stored in float16."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=12,
        projection_dim=768,
        eos_token_id=tokenizer.eos_token_id,
    )
    parts = {"vae": vae.half(), "text_encoder": CLIPTextModel(text).half(), "tokenizer": tokenizer}
    return save(folder, "StableDiffusionPipeline", {**parts, "unet": unet.half(), "scheduler": ddpm()})


@pytest.mark.slow
def test_stable_diffusion_15_is_screened_at_256_px(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = stable_diffusion_15(tmp_path / "sd15")
    flags = {
        "backbone": folder,
        "image-size": 256,
        "techniques": "prompt,generic-prompt,shuffled-prompt,shared-timestep",
        "samples": 8,
        "timesteps": 50,
        "seeds": 1,
        "probes": "",
        "image-samples": 0,
        "dtype": "float32",
        "device": "cpu",
        "batch-size": 1,
        "resamples": 200,
        "output": tmp_path / "run",
    }
    command = [sys.executable, "-m", "gate", "screen", *(f"--{k}={v}" for k, v in flags.items())]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, cpu = used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    ms = results["vanilla"]["ms_per_image"]
    spent = f"{time.perf_counter() - began:.0f} s, {cpu:.0f} s of processor time"
    print(f"\n{spent}, {peak:.1f} GiB at most, {ms / 1000:.1f} s a call and image")
    assert len(results["ranking"]) == 4 and not results["skipped"]
    assert peak < MEMORY
