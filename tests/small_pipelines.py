"""Small random pipelines of every family, from diffusers' and transformers' own classes, saved as diffusers does."""

# long: a builder for each family, fourteen of them, and nothing else
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WIDTH = 16
LETTERS = [chr(c) for c in range(97, 123)]


def save(folder: Path, pipeline: str, parts: dict[str, Any], **facts: Any) -> Path:
    """Write the parts and a model_index.json."""
    index: dict[str, Any] = {"_class_name": pipeline, **facts}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        module = type(part).__module__
        library = "diffusers" if module.startswith("diffusers") else "transformers"
        if module.startswith("diffusers.pipelines."):
            library = module.split(".")[2]
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def clip_tokenizer() -> Any:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)


def clip_encoder(
    tokenizer: Any, *, projected: bool = False, layers: int = 2, positions: int = 77, width: int = WIDTH
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=positions,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, *("▁" + c for c in LETTERS)]
    return T5TokenizerFast(vocab=[(p, -1.0 - i / 100) for i, p in enumerate(pieces)], extra_ids=0)


def t5_encoder(tokenizer: Any, width: int = WIDTH) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def bert_pair() -> tuple[Any, Any]:
    from transformers import BertConfig, BertModel, BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + c for c in LETTERS)]
    tokenizer = BertTokenizer(vocab={p: i for i, p in enumerate(pieces)}, model_max_length=77)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return tokenizer, BertModel(config)


def byte_tokenizer(cls: str) -> Any:
    """A byte-level BPE without merges, with the special tokens of a chat template."""
    import transformers
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>", "<bos>", "<eos>", "<unk>"]
    vocab = {p: i for i, p in enumerate([*specials, *letters])}
    made = getattr(transformers, cls)(vocab=vocab, merges=[])
    made.add_special_tokens({"additional_special_tokens": specials[1:3]})
    if made.pad_token is None:
        made.pad_token = "<pad>"
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    return made


def decoder_config(cls: str, vocabulary: int, layers: int = 2) -> Any:
    import transformers

    return getattr(transformers, cls)(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def qwen_vl(tokenizer: Any, layers: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = decoder_config("Qwen2Config", len(tokenizer), layers=layers).to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = Qwen2_5_VLConfig(
        text_config={
            **{key: text[key] for key in (*kept, "num_key_value_heads", "bos_token_id", "eos_token_id")},
            "rope_scaling": {"type": "default", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def vae(channels: int = 4, blocks: int = 3, kind: str = "AutoencoderKL", **options: Any) -> Any:
    import diffusers

    return getattr(diffusers, kind)(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def ddpm(**options: Any) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options)


def flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


UNET = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def stable_diffusion(folder: Path) -> Path:
    from diffusers import UNet2DConditionModel

    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(**UNET, in_channels=4, out_channels=4, cross_attention_dim=WIDTH)
    parts = {"vae": vae(), "text_encoder": clip_encoder(tokenizer), "tokenizer": tokenizer, "unet": unet}
    return save(folder, "StableDiffusionPipeline", {**parts, "scheduler": ddpm()})


def sdxl(folder: Path, second: int = WIDTH) -> Path:
    """second: width of the second text encoder; single files tell the two apart by it."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        **UNET,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=WIDTH + second,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        use_linear_projection=True,
    )
    parts = {
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": clip_encoder(tokenizer),
        "text_encoder_2": clip_encoder(tokenizer, projected=True, width=second),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": unet,
        "scheduler": EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
        ),
    }
    return save(folder, "StableDiffusionXLPipeline", parts, force_zeros_for_empty_prompt=True)


def unconditional(folder: Path) -> Path:
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return save(folder, "DDPMPipeline", {"unet": unet, "scheduler": DDPMScheduler()})


def pixel_unet(folder: Path) -> Path:
    from diffusers import DDPMScheduler, UNet2DConditionModel

    tokenizer = t5_tokenizer()
    unet = UNet2DConditionModel(
        **{
            **UNET,
            "sample_size": 32,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "attention_head_dim": 8,
        },
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        in_channels=3,
        out_channels=6,
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="positional",
        act_fn="gelu",
    )
    parts = {
        "text_encoder": t5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range"),
    }
    return save(folder, "IFPipeline", parts, safety_checker=[None, None], watermarker=[None, None])


def pixart(folder: Path) -> Path:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=16,
        use_additional_conditions=False,
    )
    parts = {
        "vae": vae(),
        "text_encoder": t5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "scheduler": DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    }
    return save(folder, "PixArtAlphaPipeline", parts)


def sd3(folder: Path) -> Path:
    from diffusers import SD3Transformer2DModel

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    parts = {
        "vae": vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip_encoder(clip, projected=True),
        "text_encoder_2": clip_encoder(clip, projected=True),
        "text_encoder_3": t5_encoder(t5, 40),
        "tokenizer": clip,
        "tokenizer_2": clip,
        "tokenizer_3": t5,
        "transformer": transformer,
        "scheduler": flow(shift=3.0),
    }
    return save(folder, "StableDiffusion3Pipeline", parts)


def flux(folder: Path) -> Path:
    from diffusers import FluxTransformer2DModel

    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    parts = {
        "vae": vae(shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip_encoder(clip),
        "text_encoder_2": t5_encoder(t5),
        "tokenizer": clip,
        "tokenizer_2": t5,
        "transformer": transformer,
        "scheduler": flow(shift=3.0, use_dynamic_shifting=True),
    }
    return save(folder, "FluxPipeline", parts)


def hunyuan_dit(folder: Path) -> Path:
    from diffusers import HunyuanDiT2DModel

    t5 = t5_tokenizer()
    tokenizer, bert = bert_pair()
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=24,
        pooled_projection_dim=16,
        text_len=77,
        text_len_t5=256,
    )
    parts = {
        "vae": vae(blocks=4),
        "text_encoder": bert,
        "text_encoder_2": t5_encoder(t5, 24),
        "tokenizer": tokenizer,
        "tokenizer_2": t5,
        "transformer": transformer,
        "scheduler": ddpm(prediction_type="v_prediction"),
    }
    return save(folder, "HunyuanDiTPipeline", parts)


def sana(folder: Path) -> Path:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
    from transformers import Gemma2Model

    tokenizer = gemma_tokenizer()
    blocks = {"block_out_channels": (8, 8, 8), "qkv_multiscales": ((), (), ())}
    parts = {
        "vae": AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock",) * 3,
            decoder_block_types=("ResBlock",) * 3,
            encoder_block_out_channels=blocks["block_out_channels"],
            decoder_block_out_channels=blocks["block_out_channels"],
            encoder_qkv_multiscales=blocks["qkv_multiscales"],
            decoder_qkv_multiscales=blocks["qkv_multiscales"],
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            scaling_factor=0.41407,
        ),
        "text_encoder": Gemma2Model(decoder_config("Gemma2Config", len(tokenizer))),
        "tokenizer": tokenizer,
        "transformer": SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=16,
        ),
        "scheduler": DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }
    return save(folder, "SanaPipeline", parts)


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizerFast

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *LETTERS]
    return GemmaTokenizerFast(vocab={p: i for i, p in enumerate(pieces)}, merges=[])


def qwen_image(folder: Path) -> Path:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    tokenizer = byte_tokenizer("Qwen2Tokenizer")
    parts = {
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1] * 4,
            latents_std=[2.0] * 4,
        ),
        "text_encoder": qwen_vl(tokenizer, layers=1),
        "tokenizer": tokenizer,
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
        "scheduler": flow(shift=1.0, use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02),
    }
    return save(folder, "QwenImagePipeline", parts)


def z_image(folder: Path) -> Path:
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Model

    tokenizer = byte_tokenizer("Qwen2Tokenizer")
    parts = {
        "vae": vae(shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": Qwen3Model(decoder_config("Qwen3Config", len(tokenizer))),
        "tokenizer": tokenizer,
        "transformer": ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
        "scheduler": flow(shift=3.0),
    }
    return save(folder, "ZImagePipeline", parts)


def flux2(folder: Path) -> Path:
    from diffusers import Flux2Transformer2DModel
    from transformers import Qwen3ForCausalLM

    tokenizer = byte_tokenizer("Qwen2Tokenizer")
    normed = vae(kind="AutoencoderKLFlux2")
    normed.bn.running_mean.uniform_(-1, 1)
    normed.bn.running_var.uniform_(0.5, 2)
    parts = {
        "vae": normed,
        "text_encoder": Qwen3ForCausalLM(decoder_config("Qwen3Config", len(tokenizer), layers=28)),
        "tokenizer": tokenizer,
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        "scheduler": flow(shift=3.0, use_dynamic_shifting=True),
    }
    return save(folder, "Flux2KleinPipeline", parts, is_distilled=True)


def kolors(folder: Path) -> Path:
    """ChatGLM reads a sentencepiece vocabulary: a small one is learned from a few words."""
    import sentencepiece
    from diffusers import UNet2DConditionModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    words = ["a cat", "a dog on the table", f"{' '.join(LETTERS)} ."] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_prefix=str(folder / "words"),
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = ChatGLMTokenizer(str(folder / "words.model"))
    text = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=96,
        hidden_size=WIDTH,
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
    encoder = ChatGLMModel(text)
    for name, weight in encoder.named_parameters():  # it leaves its weights as memory had them
        torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.05)
    unet = UNet2DConditionModel(
        **UNET,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=24,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    parts = {"vae": vae(), "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": ddpm()}
    return save(folder, "KolorsPipeline", parts, force_zeros_for_empty_prompt=False)


PIPELINES: dict[str, Callable[[Path], Path]] = {
    "unet": stable_diffusion,
    "sdxl": sdxl,
    "unconditional": unconditional,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
    "pixel-unet": pixel_unet,
    "hunyuan-dit": hunyuan_dit,
    "sana": sana,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "flux2": flux2,
    "kolors": kolors,
}


def build(family: str, folder: Path) -> Path:
    """A random pipeline of the family, the same in every run."""
    torch.manual_seed(0)
    return PIPELINES[family](folder)
