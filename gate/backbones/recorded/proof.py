"""Is a backbone's call the pipeline's own? A latent, noised at three levels by its scheduler, through both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gate.backbones.pipeline import PipelineBackbone
from gate.backbones.recorded.geometry import Geometry, measure
from gate.backbones.recorded.levels import level, level_of, noised
from gate.backbones.recorded.pipeline import call_options, own_pipeline
from gate.backbones.recorded.rehearsal import Performance, Turn, perform
from gate.request import Conditioning
from gate.sample import Sample
from gate.schedule import sample_noise

LEVELS = 3
TEXT = "a cat"


@dataclass(frozen=True)
class Level:
    """One level: t as the scheduler says it; (a, s) of theirs and ours; largest differences of latent and prediction.

    largest: of the pipeline's prediction, by its magnitude.
    """

    t: float
    theirs: tuple[float, float]
    ours: tuple[float, float]
    latent: float
    prediction: float
    largest: float

    @property
    def noise(self) -> float:
        """How far our noise level is from the scheduler's: the larger difference of signal and noise."""
        return max(abs(a - b) for a, b in zip(self.theirs, self.ours, strict=True))


@dataclass(frozen=True)
class Proof:
    """Levels, from the noisiest on."""

    levels: tuple[Level, ...]

    @property
    def prediction(self) -> float:
        """The largest difference of a prediction from the pipeline's: 0.0 where they are the same to the last bit."""
        return max(level.prediction for level in self.levels)

    @property
    def noise(self) -> float:
        """The largest difference of a noise level from the scheduler's."""
        return max(level.noise for level in self.levels)


def prove(backbone: Any, text: str | None = None) -> Proof:
    """Three steps of the pipeline's own call against the backbone's, on the same latents.

    text: the prompt; by default a cat, or nothing where the backbone takes no prompt. The latents are a drawn image's,
    noised by the pipeline's scheduler. Raises ConfigurationError where the pipeline cannot be run.
    """
    said = (TEXT if "text" in backbone.traits else "") if text is None else text
    pipeline, geometry, told = _pipeline_of(backbone, said)
    size = backbone.image_size if not hasattr(backbone, "geometry") else backbone._size
    sample = Sample(_picture(backbone.image_size), id="proof")
    batch = backbone.batch([sample])
    onto = _layout(backbone, geometry)  # for every entry of our latent, that of the VAE's
    x0, eps = (
        v.flatten()[onto.argsort()].view(geometry.shape)
        for v in (batch.x0[0], sample_noise("proof", 0, tuple(batch.x0.shape[1:])).to(batch.x0))
    )
    pair = geometry.sampled(x0), geometry.sampled(eps)

    def feed(turn: Turn, scheduler: Any) -> Tensor:
        assert turn.sample is not None
        return noised(scheduler, *pair, scheduler.timesteps[turn.number + 1]).to(turn.sample)

    real = backbone.denoiser.forward
    options = call_options(pipeline, told, LEVELS + 1, size, output_type="latent", **geometry.guidance)
    with backbone._awake(*backbone.encoders):
        shown = perform(
            pipeline,
            backbone.denoiser,
            options,
            answer=lambda turn: real(*turn.args, **turn.kwargs),
            feed=feed,
            last=LEVELS + 1,
        )
    given = backbone.encode_prompts([said])
    levels = [_level(backbone, geometry, shown, turn, given, batch, onto) for turn in shown.turns[1:]]
    return Proof(tuple(levels))


def _pipeline_of(backbone: Any, said: str) -> tuple[Any, Geometry, str]:
    """The pipeline of a backbone of any family, what is read off it, and what it is told for a text."""
    if hasattr(backbone, "geometry"):
        return backbone.pipeline, backbone.geometry, backbone._said(said)
    head = "unet" if "unet" in backbone.components else "transformer"
    words = [*backbone.encoders, *(f"tokenizer{e.removeprefix('text_encoder')}" for e in backbone.encoders)]
    parts = {word: getattr(backbone, word) for word in words if hasattr(backbone, word)}
    vae = "vqvae" if "vqvae" in backbone.index else "vae"
    parts |= {head: backbone.denoiser, "scheduler": backbone.scheduler_config}
    parts |= {vae: backbone.vae} if backbone.vae is not None else {}
    pipeline = own_pipeline(backbone.name, backbone.index, parts)
    with backbone._awake(*backbone.encoders):
        found = measure(
            pipeline, backbone.denoiser, text=said, size=backbone.image_size, dtype=backbone.dtype
        )
    return pipeline, found, said


def _layout(backbone: PipelineBackbone, geometry: Geometry) -> Tensor:
    """For every entry of the backbone's latent, flat, the entry of the VAE's latent that it is."""
    count = int(np.prod(geometry.shape))
    if hasattr(backbone, "geometry") or backbone.vae is None:
        return torch.arange(count)
    shape = (1, *backbone.batch([Sample(_picture(backbone.image_size), id="proof")]).x0.shape[1:])
    codes = (torch.zeros(shape), torch.ones(shape), torch.arange(count).double().view(shape) / count)
    zero, one, marked = (backbone.denormalise(x.double().to(backbone.device)).flatten().cpu() for x in codes)
    places = ((marked - zero) / (one - zero) * count).round().long()  # of ours, for every entry of the VAE's
    return places.argsort()


def _level(
    backbone: Any,
    geometry: Geometry,
    shown: Performance,
    turn: Turn,
    given: Conditioning,
    batch: Any,
    onto: Tensor,
) -> Level:
    assert turn.prediction is not None and turn.sample is not None
    tree: Any = (turn.args, turn.kwargs)
    for key in geometry.hidden:
        tree = tree[key]
    x = geometry.unpacked(tree).flatten()[onto].view(batch.x0.shape[1:])
    theirs = geometry.from_sample(turn.prediction).flatten()[onto].view(x.shape)
    t = torch.as_tensor(turn.t).reshape(1).to(backbone.device)
    with torch.no_grad():
        ours = backbone.call(x[None].to(backbone.dtype), t, given, batch.request(0, 0))[0]
    if ours.shape[0] == 2 * x.shape[0]:  # learned variances
        ours = ours[: x.shape[0]]
    mixed, own = level(shown.scheduler, turn.t), level_of(backbone.schedule, float(t))
    noise = sample_noise("proof", 0, tuple(x.shape)).to(x)
    latent = own[0] * batch.x0[0].to(x) + own[1] * noise - x
    return Level(
        float(t), mixed, own, _largest(latent), _largest(ours.float() - theirs.float()), _largest(theirs)
    )


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _picture(side: int) -> Any:
    """A drawn image, (side, side, 3) uint8: ramps and a square."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    made = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(128)), axis=-1).copy()
    made[side // 4 : side // 2, side // 4 : side // 2] = (255, 255, 0)
    return made


def same(proofs: Sequence[Proof]) -> bool:
    """Whether every prediction was the pipeline's to the last bit."""
    return all(proof.prediction == 0.0 for proof in proofs)
