"""What a trainer is: which parameters are fitted to a backbone, by which loss, stored in which public format."""

from __future__ import annotations

import abc
import contextlib
import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gate.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet

SMALL = 50e6  # parameters
_HOMES = {
    "cleandift": "gate.fit.cleandift:CleanDiftTrainer",
    "controlnet": "gate.fit.controlnet:ControlNetTrainer",
    "info-latent": "gate.fit.info_latent:InfoLatentTrainer",
    "ip-adapter": "gate.fit.ip_adapter:IpAdapterTrainer",
    "lora": "gate.fit.lora:LoraTrainer",
    "smooth-lora": "gate.fit.smooth_lora:SmoothLoraTrainer",
    "t2i-adapter": "gate.fit.t2i_adapter:T2iAdapterTrainer",
    "textual-inversion": "gate.fit.textual_inversion:TextualInversionTrainer",
}


def create_trainer(config: FitConfig, backbone: Backbone, samples: SampleSet) -> Trainer:
    """The trainer of `config.name`, attached to the backbone. Raises UsageError for an unknown name."""
    module, _, name = find_trainer(config.name).partition(":")
    made: type[Trainer] = getattr(importlib.import_module(module), name)
    if made.families.isdisjoint({backbone.family, *backbone.traits}):
        raise ConfigurationError(
            f"gate fit {config.name} serves latent UNets with one text encoder (Stable Diffusion 1 and 2 and kin); "
            f"{backbone.name} is {backbone.family}. Public weights for it can be screened all the same."
        )
    told: Any = backbone.denoiser.config
    beside = int(told["in_channels"]) - int(told["out_channels"])
    if beside or told.get("time_cond_proj_dim"):
        what = "is given an image beside the latent" if beside else "is distilled, with guidance as an input"
        raise ConfigurationError(
            f"gate fit trains UNets of latent, time and text; that of {backbone.name} {what}. Fit on the model that it "
            "was made from: its LoRA is screened here all the same."
        )
    trainer = made(backbone, config, samples)
    trainer.shared = (config.shared_below, config.shared_intervals)
    return trainer


def find_trainer(name: str) -> str:
    """MODULE:CLASS of a trainer. Raises UsageError for an unknown name."""
    if name not in _HOMES:
        raise unknown_name("fit", name, _HOMES, listing="gate fit --help")
    return _HOMES[name]


def is_small(denoiser: nn.Module) -> bool:
    """Whether the papers' ranks and rates, made for Stable Diffusion, are wrong for it: under 50 M parameters."""
    return sum(p.numel() for p in denoiser.parameters()) < SMALL


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator at `seed` for a while, for libraries that draw their first weights from it."""
    import torch

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class Trainer(abc.ABC):
    """Attached on construction; `release` gives the backbone back as it was.

    groups: parameters with their rates, as an optimiser takes them. steps: default length. measure: what the loss is,
    for the report. families: of backbone it serves, or traits of them, as a technique's. generates: whether what is
    fitted paints images, for a sheet of samples. shared: threshold and intervals of a shared timestep condition
    (`told`); a threshold of 0 is none. together: whether a row's held-out loss is of the other noises of its image too.
    """

    together: ClassVar[bool] = False
    measure: ClassVar[str] = "eps error"
    generates: ClassVar[bool] = True
    families: ClassVar[frozenset[str]] = frozenset({"unet"})

    backbone: Backbone
    groups: list[dict[str, Any]]
    steps: int
    shared: tuple[int, int] = (0, 1)

    def told(self, t: Tensor) -> Tensor:
        """What the denoiser is told of t while it learns, (b,): t, or the left end of its interval (E-TSDM)."""
        from gate.schedule import shared_timestep

        threshold, intervals = self.shared
        return shared_timestep(t, threshold, intervals) if threshold else t

    def loss(self, x_t: Tensor, eps: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        """(b,) float32, the mean squared eps error of each row. x_t, eps: (b, c, h, w)."""
        return self._error(self.predict(x_t, self.told(t), texts, rows), x_t, eps, t)

    def begin_step(self) -> None:  # noqa: B027
        """Before each attempt at a step: one that ran out of memory is made again."""

    def end_step(self) -> None:  # noqa: B027
        """After the optimiser's step, for what a trainer follows besides its gradients."""

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:  # noqa: B027
        """Made of these three; a trainer sets what is listed above."""

    @abc.abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        """The denoiser's prediction with what is fitted, (b, c, h, w). t: (b,) long, the timestep it is told; texts:
        b prompts; rows: which of the samples."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write the public format, which the technique loads."""

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """The settings that were used, defaults filled in."""

    def switched_off(self) -> AbstractContextManager[None]:
        """A context in which the backbone is the plain one; here for trainers that never change it."""
        return contextlib.nullcontext()

    def time(self, t: Tensor) -> Tensor:
        """The denoiser's input for the timestep t (`NoiseSchedule.told`), (b,), on its device."""
        return self.backbone.schedule.told(t).to(self.backbone.device)

    def plain(self, x_t: Tensor, t: Tensor, texts: list[str]) -> Tensor:
        """The prediction of the backbone alone, (b, c, h, w)."""
        embeds = self.backbone.encode_prompts(texts).prompt_embeds
        with self.switched_off():
            prediction: Tensor = self.backbone.denoiser(x_t, self.time(t), embeds, return_dict=False)[0]
        return prediction

    def plain_loss(self, x_t: Tensor, eps: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        """(b,) float32: what the loss would be without the fit. What the gain is measured against."""
        return self._error(self.plain(x_t, t, texts), x_t, eps, t)

    def _error(self, prediction: Tensor, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        eps_hat = self.backbone.schedule.eps_from(prediction, x_t, t)
        return (eps_hat.float() - eps.float()).square().mean(dim=(1, 2, 3))

    @abc.abstractmethod
    def release(self) -> None:
        """Take everything off the backbone."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.groups for p in group["params"]]
