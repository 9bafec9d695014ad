"""Fit a ControlNet: a copy of the denoiser's down path and mid block, joined by zero convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gate.adapters.drawing import as_tensor, drawer
from gate.fit.trainer import Trainer, is_small, seeded

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet

EMBEDDING = (16, 32, 96, 256)  # channels of the stack that brings the control image to the latent's size


class ControlNetTrainer(Trainer):
    """Zhang et al. 2023, section 3.3: rate 1e-5 on Stable Diffusion, 5e-4 on small denoisers. A third of the prompts
    are empty (half of theirs), so that the control has to say what the prompt does not."""

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        from diffusers import ControlNetModel

        draw = drawer(config.control)
        self.backbone = backbone
        unet: Any = backbone.denoiser
        small = is_small(unet)
        halvings = (backbone.image_size // int(unet.config.sample_size)).bit_length() - 1
        with seeded(config.seed):
            self.net = ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=EMBEDDING[: halvings + 1]
            )
        self.net.to(backbone.device).train().requires_grad_(True)
        self.rate = config.rate or (5e-4 if small else 1e-5)
        self.steps = 1500 if small else 10_000
        self.groups = [{"params": list(self.net.parameters()), "lr": self.rate}]
        self.images = as_tensor(draw, [s.image for s in samples])
        self.unet = unet

    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        embeds = self.backbone.encode_prompts(texts).prompt_embeds
        now = self.time(t)
        down, mid = self.net(
            x_t, now, encoder_hidden_states=embeds,
            controlnet_cond=self.images[rows].to(x_t), return_dict=False,
        )  # fmt: skip
        prediction: Tensor = self.unet(
            x_t, now, embeds, down_block_additional_residuals=down, mid_block_additional_residual=mid,
            return_dict=False,
        )[0]  # fmt: skip
        return prediction

    def save(self, folder: Path) -> None:
        self.net.save_pretrained(folder)

    def facts(self) -> dict[str, Any]:
        return {"rate": self.rate, "parameters": sum(p.numel() for p in self.parameters)}

    def release(self) -> None:
        del self.net
