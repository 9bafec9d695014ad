"""Fit a LoRA: the paper's guide (App. B), without the hours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from gate.adapters.merge import ADAPTER, unload
from gate.fit.trainer import Trainer, is_small, seeded

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet

# attention as in LoRA, convolutions and feed-forwards as in LoCon, which the paper uses
UNET_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
)  # fmt: skip
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoraTrainer(Trainer):
    """Rank 64, alpha 32, 1e-4 for the denoiser and 5e-5 for the text encoder (the paper's). Small denoisers: rank 2,
    alpha 2, 1e-3, the text encoder left alone, 150 steps; on tiny's sketches rank 8 with the text encoder and 400 steps
    removed more eps error (15 against 11 % at t = 50) and no content shift."""

    targets: ClassVar[tuple[str, ...]] = UNET_TARGETS

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.backbone = backbone
        parts: dict[str, Any] = dict(backbone.components)
        self.unet, self.text_encoder = parts["unet"], parts["text_encoder"]
        self._settle(config, is_small(self.unet))
        self._marks = {name: dict(vars(module)) for name, module in parts.items()}
        self.trained: list[tuple[str, Any, tuple[str, ...], float]] = [
            ("unet", self.unet, self.targets, self.rate)
        ]
        if self.text_rate:
            self.trained.append(("text_encoder", self.text_encoder, TEXT_TARGETS, self.text_rate))
        self.text_encoder.requires_grad_(False)
        with seeded(config.seed):  # peft draws A from the global state
            for _, module, targets, _ in self.trained:
                # peft's own call: a model's add_adapter asks for versions of peft that may not exist yet
                inject_adapter_in_model(
                    LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(targets)),
                    module,
                    ADAPTER,
                )
        self.groups = [
            {"params": [p for p in module.parameters() if p.requires_grad], "lr": rate}
            for _, module, _, rate in self.trained
        ]

    def _settle(self, config: FitConfig, small: bool) -> None:
        """Rank, alpha, rates and steps, where the configuration does not say."""
        self.rank = config.rank or (2 if small else 64)
        self.alpha = config.alpha or (2.0 if small else 32.0)
        self.rate = config.rate or (1e-3 if small else 1e-4)
        self.text_rate = (0.0 if small else 5e-5) if config.text_rate is None else config.text_rate
        self.steps = 150 if small else 1500

    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        embeds = self.backbone.encode_texts(texts)
        prediction: Tensor = self.unet(x_t, self.time(t), embeds, return_dict=False)[0]
        return prediction

    def save(self, folder: Path) -> None:
        from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
        from peft.utils import get_peft_model_state_dict

        given: dict[str, Any] = {}
        for part, module, _, _ in self.trained:
            given[f"{part}_lora_layers"] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
            given[f"{part}_lora_adapter_metadata"] = module.peft_config[ADAPTER].to_dict()
        Loader.save_lora_weights(folder, **given)

    def facts(self) -> dict[str, Any]:
        count = sum(p.numel() for p in self.parameters if p.requires_grad)
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "rate": self.rate,
            "text_rate": self.text_rate,
            "parameters": count,
        }

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    def _switch(self, on: bool) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for _, module, _, _ in self.trained:
            for layer in module.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.enable_adapters(on)

    def release(self) -> None:
        unload(self.backbone.components, self._marks)
        for _, module, _, _ in self.trained:
            module.requires_grad_(False)
