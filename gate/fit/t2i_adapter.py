"""Fit a T2I-Adapter: a small convolutional net from a control image to the denoiser's down blocks."""

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


class T2iAdapterTrainer(Trainer):
    """Mou et al. 2023 (arXiv 2302.08453), section 3.3: rate 1e-5 on Stable Diffusion, 1e-3 on small denoisers."""

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        from diffusers import T2IAdapter

        draw = drawer(config.control)
        self.backbone, unet = backbone, backbone.denoiser
        shape: Any = unet.config
        small = is_small(unet)
        with seeded(config.seed):
            self.net = T2IAdapter(
                in_channels=3,
                channels=list(shape.block_out_channels),
                downscale_factor=backbone.image_size // int(shape.sample_size),
            )
        self.net.to(backbone.device).train()
        self.rate = config.rate or (1e-3 if small else 1e-5)
        self.steps = 1500 if small else 10_000
        self.groups = [{"params": list(self.net.parameters()), "lr": self.rate}]
        self.images = as_tensor(draw, [s.image for s in samples])

    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        embeds = self.backbone.encode_prompts(texts).prompt_embeds
        prediction: Tensor = self.backbone.denoiser(
            x_t, self.time(t), embeds, return_dict=False,
            down_intrablock_additional_residuals=list(self.net(self.images[rows].to(x_t))),
        )[0]  # fmt: skip
        return prediction

    def save(self, folder: Path) -> None:
        self.net.save_pretrained(folder)

    def facts(self) -> dict[str, Any]:
        return {"rate": self.rate, "parameters": sum(p.numel() for p in self.parameters)}

    def release(self) -> None:
        del self.net
