"""What is measured: the embedded backbone, Stable Diffusion 1.5's size and a transformer, the latter two untrained.

FLOPs and seconds carry over from random weights; errors of half precision do not, which is why `tiny` is here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gate.backbone import Backbone
from gate.backbones import load_backbone
from gate.backbones.families.pixart import PixArt
from gate.backbones.families.unet import LatentUNet

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LIBRARIES = {
    "CLIPTextModel": "transformers",
    "CLIPTokenizer": "transformers",
    "T5EncoderModel": "transformers",
}


def tiny(size: int) -> Backbone:
    return load_backbone("tiny", device="cpu", image_size=size or None)


def sd15(size: int) -> Backbone:
    """The modules of Stable Diffusion 1.5 by the values of its public configs: 860 M + 84 M + 123 M weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    tokenizer = clip_tokenizer()
    parts = {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        "text_encoder": clip_encoder(tokenizer, width=768, layers=12, heads=12),
        "tokenizer": tokenizer,
    }
    return _assembled(LatentUNet, "sd15-random", parts, size or 512, "StableDiffusionPipeline")


def sd15_miniature(size: int) -> Backbone:
    """The same topology with a hundredth of the weights, for tests."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    tokenizer = clip_tokenizer()
    widths = (16, 16, 32, 32)
    parts = {
        "unet": UNet2DConditionModel(
            sample_size=16,
            block_out_channels=widths,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=8,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ),
        "text_encoder": clip_encoder(tokenizer, width=16, layers=1, heads=2),
        "tokenizer": tokenizer,
    }
    return _assembled(LatentUNet, "sd15-miniature", parts, size or 128, "StableDiffusionPipeline")


def pixart(size: int) -> Backbone:
    """PixArt's blocks at an eighth of its weights: 12 deep, 512 wide, tokens of 2 x 2 latents; 57 M."""
    return _pixart("pixart-random", size or 256, depth=12, heads=8, head=64, widths=(64, 128, 256, 256))


def pixart_miniature(size: int) -> Backbone:
    return _pixart("pixart-miniature", size or 64, depth=4, heads=2, head=8, widths=(8, 8, 8, 8))


def _pixart(name: str, size: int, *, depth: int, heads: int, head: int, widths: tuple[int, ...]) -> Backbone:
    from diffusers import AutoencoderKL, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer()
    text = T5Config(
        vocab_size=len(tokenizer),
        d_model=heads * head,
        d_kv=head,
        d_ff=2 * heads * head,
        num_layers=2,
        num_heads=heads,
    )
    parts = {
        "transformer": PixArtTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=head,
            num_layers=depth,
            cross_attention_dim=heads * head,
            caption_channels=heads * head,
            sample_size=size // 8,
            use_additional_conditions=False,
        ),
        "vae": AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        ),
        "text_encoder": T5EncoderModel(text),
        "tokenizer": tokenizer,
    }
    return _assembled(PixArt, name, parts, size, "PixArtAlphaPipeline")


MODELS: dict[str, Callable[[int], Backbone]] = {
    "tiny": tiny,
    "sd15": sd15,
    "pixart": pixart,
    "sd15-miniature": sd15_miniature,
    "pixart-miniature": pixart_miniature,
}


def load(name: str, size: int = 0, device: str = "cpu") -> Backbone:
    """A backbone in float32, the same weights in every run. size: pixels a side, 0 for the model's own."""
    torch.manual_seed(0)
    backbone = MODELS[name](size)
    if device != "cpu":
        backbone.move(torch.device(device))  # type: ignore[attr-defined]
    return backbone


def converted(backbone: Backbone, dtype: str, *, channels_last: bool) -> Backbone:
    """The same weights in another dtype and layout, in modules of their own."""
    import copy

    from diffusers.utils import logging

    logging.set_verbosity_error()  # it says of every cast that no module is to be left out
    made: Any = copy.copy(backbone)
    made._prompts, made.dtype = type(made._prompts)(), DTYPES[dtype]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for part, module in vars(backbone).items():
        if isinstance(module, nn.Module):
            setattr(made, part, copy.deepcopy(module).to(DTYPES[dtype]).to(memory_format=layout))
    return made


def _assembled(family: Any, name: str, parts: dict[str, Any], size: int, pipeline: str) -> Backbone:
    """A backbone of parts that are in no folder: made again from a seed, 4 GB need not be written."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    index: dict[str, Any] = {"_class_name": pipeline}
    for part, value in {**parts, "scheduler": scheduler}.items():
        index[part] = [LIBRARIES.get(type(value).__name__, "diffusers"), type(value).__name__]
    made: Backbone = family(
        name,
        Path(name),
        index,
        {**parts, "scheduler": scheduler.config},
        device=torch.device("cpu"),
        dtype=torch.float32,
        image_size=size,
    )
    return made


def clip_tokenizer() -> Any:
    """Bytes as words: what a prompt says plays no part in how long it takes."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)


def clip_encoder(tokenizer: Any, *, width: int, layers: int, heads: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    letters = [chr(c) for c in range(97, 123)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *("▁" + c for c in letters)]
    return T5TokenizerFast(vocab=[(p, -1.0 - i / 100) for i, p in enumerate(pieces)], extra_ids=0)
