"""What public formats call their files, and where the public weights are: facts that fitting and using share."""

from __future__ import annotations

from collections.abc import Mapping

LORA_FILE = "pytorch_lora_weights.safetensors"
OVER_FITTED = "over-fitted"  # the folder of the last step's weights in a fit
CLEANDIFT_FILE = "cleandift_unet.safetensors"
INFO_LATENT_FILE = "info_latent.safetensors"
WORDS_FILE = "learned_embeds.safetensors"
WORD_TEMPLATE = "{token} {prompt}"  # where a learned word stands in a prompt
IP_ADAPTER_FILE, IMAGE_ENCODER = "ip-adapter.safetensors", "image_encoder"
# repository, file and folder of the image encoder, by the width of the denoiser's cross-attention
PUBLIC_IP_ADAPTERS: Mapping[int, tuple[str, str, str]] = {
    768: ("h94/IP-Adapter", "models/ip-adapter_sd15.safetensors", "models/image_encoder"),
    2048: ("h94/IP-Adapter", "sdxl_models/ip-adapter_sdxl_vit-h.safetensors", "models/image_encoder"),
}
CONTROL_IMAGES = ("canny", "soft-edges", "tile", "depth")
DEPTH_MODEL = "Intel/dpt-large"
# by the width of the denoiser's cross-attention
PUBLIC_SMOOTH_LORAS: Mapping[int, str] = {768: "shi-labs/smooth-diffusion-lora"}
