"""Fit an info-latent: an encoder whose few numbers tell a frozen denoiser what the image is, InfoDiffusion's idea."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gate.adapters.formats import INFO_LATENT_FILE
from gate.adapters.info_latent import InfoLatent, joined, mmd_to_normal, time_embedder
from gate.backbone import pixels
from gate.fit.trainer import Trainer, is_small, seeded
from gate.request import Batch, Request

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet

MMD_WEIGHT = 0.1  # the paper's zeta, for natural images
AT_ONCE = 32  # images encoded at once


class InfoLatentTrainer(Trainer):
    """Wang et al. 2023 (arXiv 2306.08757): eps error + x0 error / T + 0.1 MMD(N(0, I), a); the backbone is
    frozen (ours), the encoder reads x0, is deterministic, and what it adds to the time embedding starts at zero.

    The x0 error is (s_t / a_t)^2 times the eps error, so one prediction gives both. Rate 1e-3 and 600 steps on small
    denoisers, 1e-4 and 400 on others. The held-out error is that of eps alone.
    """

    families: ClassVar[frozenset[str]] = frozenset({"text", "unconditional"})

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        self.backbone, self.samples = backbone, samples
        embedder: Any = time_embedder(backbone.denoiser)
        parts = (samples[i : i + AT_ONCE].samples for i in range(0, len(samples), AT_ONCE))
        self.x0 = torch.cat([backbone.encode(pixels(part)) for part in parts])
        with seeded(config.seed):
            self.net = InfoLatent(self.x0.shape[1], int(embedder.linear_2.out_features)).to(backbone.device)
        small = is_small(backbone.denoiser)
        self.rate = config.rate or (1e-3 if small else 1e-4)
        self.steps = 600 if small else 400
        self.groups = [{"params": list(self.net.parameters()), "lr": self.rate}]
        self.stack = contextlib.ExitStack()
        self.carried = self.stack.enter_context(joined(backbone.denoiser))

    def loss(self, x_t: Tensor, eps: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        """(b,): the eps error; while it learns, with the x0 error and the MMD of the rows that go through at once."""
        error = super().loss(x_t, eps, t, texts, rows)
        if not torch.is_grad_enabled():
            return error
        a, s = (c.flatten().to(error) for c in self.backbone.schedule.coefficients(t, x_t))
        weight = 1 + (s / a).square() / len(self.backbone.schedule)
        return weight * error + MMD_WEIGHT * mmd_to_normal(self.net.code(self.x0[rows]))

    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        return self._predict(x_t, t, texts, self.net(self.x0[rows]))

    def plain(self, x_t: Tensor, t: Tensor, texts: list[str]) -> Tensor:
        return self._predict(x_t, t, texts, None)

    def _predict(self, x_t: Tensor, t: Tensor, texts: list[str], added: Tensor | None) -> Tensor:
        conditioning = self.backbone.encode_prompts(texts)
        batch = Batch(self.backbone, (), x_t, conditioning)
        request = Request(x_t, t, t, torch.zeros_like(x_t), conditioning, batch, 0)
        with self._carrying(added):
            return self.backbone.activate(request)[0]

    @contextlib.contextmanager
    def _carrying(self, added: Tensor | None) -> Iterator[None]:
        self.carried.added = added
        try:
            yield
        finally:
            self.carried.added = None

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        save_file(state, folder / INFO_LATENT_FILE)

    def facts(self) -> dict[str, Any]:
        return {"rate": self.rate, "parameters": sum(p.numel() for p in self.parameters)}

    def release(self) -> None:
        self.stack.close()
        del self.net
