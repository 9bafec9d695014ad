"""Names of weights as the original latent diffusion code has them: what single files hold."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_HEADS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_keys(state: Mapping[str, Tensor], *, blocks: int, resnets: int) -> dict[str, Tensor]:
    """A UNet2DConditionModel's weights under their original names."""
    heads = dict(UNET_HEADS)
    attends = {key.split(".attentions")[0] for key in state if ".attentions." in key}
    for i in range(blocks):
        for j in range(resnets):
            n = 1 + i * (resnets + 1) + j
            heads[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{n}.0"
            heads[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{n}.1"
        heads[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * (resnets + 1)}.0.op"
        for j in range(resnets + 1):
            n = i * (resnets + 1) + j
            heads[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{n}.0"
            heads[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{n}.1"
        slot = 2 if f"up_blocks.{i}" in attends else 1
        heads[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{(i + 1) * (resnets + 1) - 1}.{slot}"
    renamed = {}
    for key, value in state.items():
        head = next(h for h in sorted(heads, key=len, reverse=True) if key.startswith(f"{h}."))
        rest = key[len(head) + 1 :]
        if ".resnets." in key:
            inner, _, leaf = rest.partition(".")
            rest = f"{RESNET[inner]}.{leaf}"
        renamed[f"model.diffusion_model.{heads[head]}.{rest}"] = value
    return renamed


def vae_keys(state: Mapping[str, Tensor], *, blocks: int) -> dict[str, Tensor]:
    """An AutoencoderKL's weights under their original names; the decoder counts its levels from the last."""
    renamed = {}
    for key, value in state.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", new
        )
        new = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", new
        )
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        for name, original in VAE_ATTENTION.items():
            new = new.replace(f"mid_block.attentions.0.{name}.", f"mid.attn_1.{original}.")
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if ".attn_1." in new and value.ndim == 2:
            value = value[:, :, None, None]
        renamed[f"first_stage_model.{new}"] = value
    return renamed


def clip_keys(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIPTextModel's weights as older transformers named them, behind a prefix."""
    head = "" if next(iter(state)).startswith("text_model.") else "text_model."
    return {f"{prefix}{head}{key}": value for key, value in state.items()}


OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip_keys(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIPTextModelWithProjection's weights as OpenCLIP names them: q, k and v stacked, the projection turned."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        new = key.removeprefix("text_model.")
        for name, original in OPEN_CLIP.items():
            new = new.replace(name, original)
        if key == "text_projection.weight":
            new, value = "text_projection", value.T.contiguous()
        if ".self_attn.q_proj." in key:
            value = torch.cat([state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            new = new.replace("self_attn.q_proj.", "attn.in_proj_")
        elif "_proj." in key and ".self_attn." in key and "out_proj" not in key:
            continue
        renamed[f"{prefix}{new}"] = value
    return renamed
