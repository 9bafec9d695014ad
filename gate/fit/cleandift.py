"""Fit CleanDIFT: a copy of the denoiser that gives, for clean latents, what the original gives for noisy ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gate.adapters.formats import CLEANDIFT_FILE
from gate.backbones.activations import capture
from gate.fit.trainer import Trainer, is_small, seeded

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet

TIME_WIDTH = 64


class CleanDiftTrainer(Trainer):
    """Stracke et al. 2024, section 3 and App. A: the frozen teacher sees x_t, the student x0 at t = 0; the mean of
    1 - cosine over the mid block and every repeat of the up path, through one time-conditioned adapter per layer that
    is thrown away afterwards. Rate 1e-5 and 400 steps on Stable Diffusion, 1e-4 and 1500 on small denoisers. The paper
    draws three t a step, one from each third of the schedule; here every row of a batch has a share of its own."""

    measure = "misalignment with noisy features"
    generates = False

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        self.backbone, self.teacher = backbone, backbone.denoiser
        small = is_small(self.teacher)
        self.paths = aligned_layers(self.teacher)
        self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        with seeded(config.seed):
            self.adapters = nn.ModuleList(
                Adapter(channels_of(self.teacher, path)) for path in self.paths.values()
            ).to(backbone.device)
        self.rate = config.rate or (1e-4 if small else 1e-5)
        self.steps = 1500 if small else 400
        learned = [*self.student.parameters(), *self.adapters.parameters()]
        self.groups = [{"params": learned, "lr": self.rate}]

    def loss(self, x_t: Tensor, eps: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        """(b,) in [0, 2]: 1 - cosine of the adapted student's features and the teacher's."""
        return self._misalignment(self.student, self.adapters, x_t, eps, t, texts)

    def plain_loss(self, x_t: Tensor, eps: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        return self._misalignment(self.teacher, None, x_t, eps, t, texts)

    def _misalignment(
        self,
        student: nn.Module,
        adapters: nn.ModuleList | None,
        x_t: Tensor,
        eps: Tensor,
        t: Tensor,
        texts: list[str],
    ) -> Tensor:
        a, s = self.backbone.schedule.coefficients(t, x_t)
        embeds, now = self.backbone.encode_prompts(texts).prompt_embeds, self.time(self.told(t))
        with torch.no_grad(), capture(self.teacher, self.paths) as seen:
            self.teacher(x_t, now, embeds, return_dict=False)
            noisy = dict(seen)
        with capture(student, self.paths) as seen:
            student((x_t - s * eps) / a, torch.zeros_like(now), embeds, return_dict=False)
            clean = dict(seen)
        share = t.to(x_t) / len(self.backbone.schedule)
        losses = []
        for i, path in enumerate(self.paths):
            feature = adapters[i](clean[path], share) if adapters is not None else clean[path]
            losses.append(1 - nn.functional.cosine_similarity(feature, noisy[path], dim=1).mean(dim=(1, 2)))
        return torch.stack(losses).mean(0)

    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        embeds = self.backbone.encode_prompts(texts).prompt_embeds
        prediction: Tensor = self.student(x_t, self.time(t), embeds, return_dict=False)[0]
        return prediction

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().half().cpu().contiguous() for k, v in self.student.state_dict().items()}
        save_file(state, folder / CLEANDIFT_FILE)

    def facts(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "layers": len(self.paths),
            "parameters": sum(p.numel() for p in self.parameters),
        }

    def release(self) -> None:
        del self.student, self.adapters


class Adapter(nn.Module):
    """f + W2 silu(scale(t) W1 f + shift(t)), pointwise; starts as the identity (W2 = 0)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.time = nn.Sequential(nn.Linear(1, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, 2 * channels))
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor, share: Tensor) -> Tensor:
        """feature: (b, c, h, w); share: (b,), t as a share of the schedule."""
        scale, shift = self.time(share[:, None])[..., None, None].chunk(2, dim=1)
        adapted: Tensor = feature + self.second(nn.functional.silu((1 + scale) * self.first(feature) + shift))
        return adapted


def aligned_layers(unet: Any) -> dict[str, str]:
    """Paths of the mid block and of what each repeat of the up path ends with: its transformer, or its resnet."""
    paths = ["mid_block"]
    for i, block in enumerate(unet.up_blocks):
        attentions = getattr(block, "attentions", None)
        last = "attentions" if attentions is not None else "resnets"
        paths += [f"up_blocks.{i}.{last}.{j}" for j in range(len(block.resnets))]
    return {path: path for path in paths}


def channels_of(unet: Any, path: str) -> int:
    """Of a layer's output."""
    if path == "mid_block":
        return int(unet.config.block_out_channels[-1])
    block = unet.get_submodule(path.rsplit(".", 2)[0])
    return int(block.resnets[int(path.rsplit(".", 1)[1])].out_channels)
