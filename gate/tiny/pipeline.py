"""Write the tiny pipeline as a diffusers folder and load it again, as Stable Diffusion is loaded."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from gate.tiny import WEIGHTS
from gate.tiny.models import new_scheduler


def export_pipeline(vae: Any, unet: Any, text_encoder: Any, tokenizer: Any, folder: Path = WEIGHTS) -> None:
    """Write all parts in float16 safetensors; readers see each file either old or new, never half of one."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        dtypes = [(module, module.dtype) for module in (vae, unet, text_encoder)]
        pipeline.to(torch.float16)
        pipeline.save_pretrained(partial, safe_serialization=True)
        for module, dtype in dtypes:
            module.to(dtype)
        for source in sorted(Path(partial).rglob("*")):
            target = folder / source.relative_to(partial)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                source.chmod(0o644)  # safetensors writes for the owner alone, and a wheel keeps that
                os.replace(source, target)


def load_pipeline(folder: Path = WEIGHTS) -> Any:
    """The StableDiffusionPipeline in `folder`, float32, quiet."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def weights_size(folder: Path = WEIGHTS) -> int:
    """Bytes of all files of a pipeline folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
