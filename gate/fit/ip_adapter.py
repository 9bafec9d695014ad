"""Fit an IP-Adapter: a projection of an image embedding, and a second cross-attention to it in every transformer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gate.adapters.formats import IMAGE_ENCODER, IP_ADAPTER_FILE, PUBLIC_IP_ADAPTERS
from gate.adapters.image_prompt import Wear, tailor, worn
from gate.adapters.vision import VisionModel, clip_processor, load_image_encoder
from gate.fit.trainer import Trainer, is_small, seeded

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet

TOKENS = 4  # image tokens beside the text's
ACQUAINT_STEPS, ACQUAINT_BATCH = 200, 32
BLANK_EVERY = 20  # one in 20 timesteps trains without an image: 5 %


class IpAdapterTrainer(Trainer):
    """Ye et al. 2023, section 4.1: rate 1e-4, the image dropped for 5 % (here: where t ends on 7 of each 20), the new
    attention starts from the text's keys and values. On small denoisers rate 1e-3, values from zero, and the image
    encoder, a small CLIP vision transformer, is trained along, since no public one knows images of 64 pixels; from
    random weights it learned nothing in 1200 steps, so it first learns to tell colours and layout. Else CLIP's stays
    frozen."""

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        self.backbone = backbone
        unet: Any = backbone.denoiser
        self.unet, small = unet, is_small(unet)
        width = unet.config.cross_attention_dim
        with seeded(config.seed):
            self.encoder = small_encoder(backbone) if small else public_encoder(backbone)
            size = self.encoder.model.config.projection_dim
            projection = torch.nn.Linear(size, TOKENS * width)
            self.images = torch.cat([self.encoder.pixels([s.image]) for s in samples])
            if small:
                acquaint(self.encoder.model, self.images)
        state = {
            "image_proj": {
                "proj.weight": projection.weight.detach(),
                "proj.bias": projection.bias.detach(),
                "norm.weight": torch.ones(width),
                "norm.bias": torch.zeros(width),
            },
            "ip_adapter": {
                f"{2 * i + 1}.to_{part}_ip.weight": getattr(attention, f"to_{part}").weight.detach()
                * (0.0 if small and part == "v" else 1.0)
                for i, attention in enumerate(cross_attentions(unet))
                for part in "kv"
            },
        }
        self.own = Wear.of(unet)
        self.wear = tailor(unet, state, 1.0, torch.zeros(1, size))
        self.wear.put_on(unet)
        modules = [p for p in self.wear.processors.values() if hasattr(p, "to_k_ip")]
        learned = [*modules, self.wear.projection, *([self.encoder.model] if small else [])]
        for module in learned:
            module.requires_grad_(True).train()
        self.small = small
        self.rate = config.rate or (1e-3 if small else 1e-4)
        self.steps = 1500 if small else 10_000
        self.groups = [{"params": [p for m in learned for p in m.parameters()], "lr": self.rate}]

    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        embeds = self.backbone.encode_prompts(texts).prompt_embeds
        with contextlib.nullcontext() if self.small else torch.no_grad():
            image = self.encoder.model(self.images[rows].to(x_t)).image_embeds
        seen = (t % BLANK_EVERY != 7).to(image)[:, None]
        prediction: Tensor = self.unet(
            x_t, self.time(t), embeds, return_dict=False,
            added_cond_kwargs={"image_embeds": [(image * seen)[:, None]]},
        )[0]  # fmt: skip
        return prediction

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        layer = self.wear.projection.image_projection_layers[0]
        state = {f"image_proj.{k.replace('image_embeds', 'proj')}": v for k, v in layer.state_dict().items()}
        modules = [p for p in self.wear.processors.values() if hasattr(p, "to_k_ip")]
        for i, module in enumerate(modules):
            state[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"] = module.to_k_ip[0].weight
            state[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"] = module.to_v_ip[0].weight
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / IP_ADAPTER_FILE)
        self.encoder.model.save_pretrained(folder / IMAGE_ENCODER)

    def facts(self) -> dict[str, Any]:
        return {"rate": self.rate, "tokens": TOKENS, "parameters": sum(p.numel() for p in self.parameters)}

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        with worn(self.unet, self.own):
            yield

    def release(self) -> None:
        self.own.put_on(self.unet)


def cross_attentions(unet: Any) -> list[Any]:
    """The modules that attend to the prompt, in the order in which diffusers numbers them."""
    return [
        unet.get_submodule(name.removesuffix(".processor"))
        for name in unet.attn_processors
        if name.endswith("attn2.processor")
    ]


def small_encoder(backbone: Backbone) -> VisionModel:
    """A CLIP vision transformer with random weights: 8 patches a side, three layers of width 96."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    size = backbone.image_size
    config = CLIPVisionConfig(
        image_size=size, patch_size=size // 8, hidden_size=96, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, projection_dim=96,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).to(backbone.device)
    return VisionModel(model, clip_processor(model))


def acquaint(encoder: Any, images: Tensor) -> None:
    """Teach an encoder what its images look like: its embedding predicts their 8x8 means.

    images: (n, 3, h, w), prepared for it. Draws from torch's global generator.
    """
    means = torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)
    target = (means - means.mean(0)) / means.std(0).clamp_min(1e-3)
    head = torch.nn.Linear(encoder.config.projection_dim, target.shape[1]).to(images)
    learned = [*encoder.parameters(), *head.parameters()]
    for parameter in learned:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(learned, lr=1e-3, weight_decay=1e-2)
    for _ in range(ACQUAINT_STEPS):
        rows = torch.randint(len(images), (ACQUAINT_BATCH,))
        optimiser.zero_grad(set_to_none=True)
        loss = (head(encoder(images[rows]).image_embeds) - target[rows]).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()


def public_encoder(backbone: Backbone) -> VisionModel:
    """CLIP's image encoder, as the public IP-Adapters have it."""
    repository, _, folder = PUBLIC_IP_ADAPTERS[768]
    encoder: VisionModel = load_image_encoder(repository, folder, backbone)
    return encoder
