"""Small random pipelines that no family serves, from diffusers' and transformers' own classes."""

# long: a builder for each pipeline, and nothing else
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_pipelines import (
    WIDTH,
    byte_tokenizer,
    clip_encoder,
    clip_tokenizer,
    decoder_config,
    flow,
    gemma_tokenizer,
    qwen_vl,
    save,
    t5_encoder,
    t5_tokenizer,
    vae,
)

PLAIN_VAE = {"shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}


def umt5_encoder(tokenizer: Any) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def aura_flow(folder: Path) -> Path:
    from diffusers import AuraFlowTransformer2DModel

    tokenizer = t5_tokenizer()
    parts = {
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": umt5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": AuraFlowTransformer2DModel(
            sample_size=16,
            num_mmdit_layers=1,
            num_single_dit_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pos_embed_max_size=256,
        ),
        "scheduler": flow(shift=1.73),
    }
    return save(folder, "AuraFlowPipeline", parts)


def chroma(folder: Path) -> Path:
    from diffusers import ChromaTransformer2DModel

    tokenizer = t5_tokenizer()
    parts = {
        "vae": vae(**PLAIN_VAE),
        "text_encoder": t5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        "scheduler": flow(use_dynamic_shifting=True),
    }
    return save(folder, "ChromaPipeline", parts)


def cogview4(folder: Path) -> Path:
    from diffusers import CogView4Transformer2DModel
    from tokenizers.processors import TemplateProcessing
    from transformers import GlmModel

    tokenizer = byte_tokenizer("Qwen2Tokenizer")
    tokenizer.padding_side = "left"
    start = ("<bos>", tokenizer.convert_tokens_to_ids("<bos>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[start])
    parts = {
        "vae": vae(),
        "text_encoder": GlmModel(decoder_config("GlmConfig", len(tokenizer))),
        "tokenizer": tokenizer,
        "transformer": CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            sample_size=16,
            pos_embed_max_size=16,
            rope_axes_dim=(16, 16),
        ),
        "scheduler": flow(
            base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    }
    return save(folder, "CogView4Pipeline", parts)


def lumina2(folder: Path) -> Path:
    from diffusers import Lumina2Transformer2DModel
    from transformers import Gemma2Model

    tokenizer = gemma_tokenizer()
    parts = {
        "vae": vae(blocks=4, **PLAIN_VAE),
        "text_encoder": Gemma2Model(decoder_config("Gemma2Config", len(tokenizer), layers=3)),
        "tokenizer": tokenizer,
        "transformer": Lumina2Transformer2DModel(
            sample_size=16,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(512, 64, 64),
            cap_feat_dim=WIDTH,
        ),
        "scheduler": flow(shift=6.0),
    }
    return save(folder, "Lumina2Pipeline", parts)


def hidream(folder: Path) -> Path:
    from diffusers import HiDreamImageTransformer2DModel
    from transformers import LlamaForCausalLM

    clip, t5, llama = clip_tokenizer(), t5_tokenizer(), byte_tokenizer("Qwen2Tokenizer")
    clip.model_max_length = 128
    parts = {
        "vae": vae(**PLAIN_VAE),
        "text_encoder": clip_encoder(clip, projected=True, positions=128),
        "text_encoder_2": clip_encoder(clip, projected=True, positions=128),
        "text_encoder_3": t5_encoder(t5),
        "text_encoder_4": LlamaForCausalLM(decoder_config("LlamaConfig", len(llama), layers=3)),
        "tokenizer": clip,
        "tokenizer_2": clip,
        "tokenizer_3": t5,
        "tokenizer_4": llama,
        "transformer": HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=[0, 1, 2],
            force_inference_output=True,
        ),
        "scheduler": flow(shift=3.0),
    }
    return save(folder, "HiDreamImagePipeline", parts)


def hunyuan_image(folder: Path) -> Path:
    from diffusers import AutoencoderKLHunyuanImage, HunyuanImageTransformer2DModel
    from transformers import ByT5Tokenizer

    tokenizer, glyphs = byte_tokenizer("Qwen2Tokenizer"), ByT5Tokenizer(extra_ids=0)
    parts = {
        "vae": AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=8,
            sample_size=64,
            scaling_factor=0.75289,
        ),
        "text_encoder": qwen_vl(tokenizer, layers=3),
        "tokenizer": tokenizer,
        "text_encoder_2": t5_encoder(glyphs),
        "tokenizer_2": glyphs,
        "transformer": HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=2,
            num_refiner_layers=1,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(8, 8),
        ),
        "scheduler": flow(shift=5.0),
    }
    return save(folder, "HunyuanImagePipeline", parts)


def bria(folder: Path) -> Path:
    from diffusers import BriaTransformer2DModel

    tokenizer = t5_tokenizer()
    parts = {
        "vae": vae(**{**PLAIN_VAE, "shift_factor": 0.0}),
        "text_encoder": t5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=[0, 4, 4],
        ),
        "scheduler": flow(shift=3.0),
    }
    return save(folder, "BriaPipeline", parts)


def ovis_image(folder: Path) -> Path:
    from diffusers import OvisImageTransformer2DModel
    from transformers import Qwen3Model

    tokenizer = byte_tokenizer("Qwen2Tokenizer")
    parts = {
        "vae": vae(**PLAIN_VAE),
        "text_encoder": Qwen3Model(decoder_config("Qwen3Config", len(tokenizer))),
        "tokenizer": tokenizer,
        "transformer": OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
        "scheduler": flow(use_dynamic_shifting=True),
    }
    return save(folder, "OvisImagePipeline", parts)


def prx(folder: Path) -> Path:
    from diffusers import PRXPipeline, PRXTransformer2DModel
    from transformers import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    assert PRXPipeline.__name__  # its package puts the encoder at transformers' top level

    tokenizer = gemma_tokenizer()
    inner = T5GemmaModuleConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = T5GemmaConfig(encoder=inner, is_encoder_decoder=False, vocab_size=len(tokenizer))
    tokenizer.model_max_length = 64
    parts = {
        "vae": vae(**PLAIN_VAE),
        "text_encoder": T5GemmaEncoder(inner),
        "tokenizer": tokenizer,
        "transformer": PRXTransformer2DModel(
            in_channels=4, context_in_dim=WIDTH, hidden_size=16, num_heads=2, depth=2, axes_dim=[4, 4]
        ),
        "scheduler": flow(shift=3.0),
    }
    made = save(folder, "PRXPipeline", parts, default_sample_size=64)
    config.save_pretrained(folder / "text_encoder")  # public checkpoints keep that of encoder and decoder
    return made


def kandinsky5(folder: Path) -> Path:
    """Its pipeline knows 1024 px and other shapes, and no smaller size."""
    from diffusers import Kandinsky5Transformer3DModel

    tokenizer, clip = byte_tokenizer("Qwen2Tokenizer"), clip_tokenizer()
    parts = {
        "vae": vae(blocks=4),
        "text_encoder": qwen_vl(tokenizer, layers=3),
        "tokenizer": tokenizer,
        "text_encoder_2": clip_encoder(clip),
        "tokenizer_2": clip,
        "transformer": Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=8,
            model_dim=16,
            ff_dim=16,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
        ),
        "scheduler": flow(shift=5.0),
    }
    return save(folder, "Kandinsky5T2IPipeline", parts)


def dit(folder: Path) -> Path:
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    parts = {
        "vae": vae(),
        "transformer": DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=16,
            num_embeds_ada_norm=1000,
        ),
        "scheduler": DDIMScheduler(),
    }
    return save(folder, "DiTPipeline", parts, id2label={"7": "cock", "207": "golden retriever"})


def wan(folder: Path) -> Path:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    tokenizer = t5_tokenizer()
    parts = {
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[2.0, 1.5, 1.0, 0.5],
        ),
        "text_encoder": umt5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": WanTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }
    return save(folder, "WanPipeline", parts, transformer_2=[None, None], boundary_ratio=None)


def ltx(folder: Path) -> Path:
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    tokenizer = t5_tokenizer()
    parts = {
        "vae": AutoencoderKLLTXVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        "text_encoder": t5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=WIDTH,
        ),
        "scheduler": flow(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            shift_terminal=0.1,
        ),
    }
    return save(folder, "LTXPipeline", parts)


def amused(folder: Path) -> Path:
    """Discrete tokens, which no Gaussian noise reaches."""
    from diffusers import AmusedScheduler, UVit2DModel, VQModel

    tokenizer = clip_tokenizer()
    parts = {
        "vqvae": VQModel(
            act_fn="silu",
            block_out_channels=[8],
            down_block_types=["DownEncoderBlock2D"],
            in_channels=3,
            latent_channels=8,
            layers_per_block=1,
            norm_num_groups=4,
            num_vq_embeddings=8,
            out_channels=3,
            sample_size=8,
            up_block_types=["UpDecoderBlock2D"],
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        ),
        "text_encoder": clip_encoder(tokenizer, projected=True),
        "tokenizer": tokenizer,
        "transformer": UVit2DModel(
            hidden_size=8,
            use_bias=False,
            hidden_dropout=0.0,
            cond_embed_dim=WIDTH,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=WIDTH,
            vocab_size=32,
            codebook_size=8,
            in_channels=8,
            block_out_channels=8,
            num_res_blocks=1,
            downsample=True,
            upsample=True,
            block_num_heads=1,
            num_hidden_layers=1,
            num_attention_heads=1,
            attention_dropout=0.0,
            intermediate_size=8,
            layer_norm_eps=1e-6,
            ln_elementwise_affine=True,
        ),
        "scheduler": AmusedScheduler(mask_token_id=31),
    }
    return save(folder, "AmusedPipeline", parts)


RECORDED: dict[str, Callable[[Path], Path]] = {
    "aura-flow": aura_flow,
    "chroma": chroma,
    "cogview4": cogview4,
    "lumina2": lumina2,
    "hidream": hidream,
    "hunyuan-image": hunyuan_image,
    "bria": bria,
    "ovis-image": ovis_image,
    "prx": prx,
    "dit": dit,
    "kandinsky5": kandinsky5,
    "wan": wan,
    "ltx": ltx,
}


def build_recorded(name: str, folder: Path) -> Path:
    """A random pipeline, the same in every run."""
    torch.manual_seed(0)
    return {**RECORDED, "amused": amused}[name](folder)
