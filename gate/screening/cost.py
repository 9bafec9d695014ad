"""What a screening costs, counted from what techniques declare; the one place where its calls are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gate.registry import create_technique
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.screening.config import ScreenConfig

LONG = 300.0  # seconds from which on it is said how to make a screening shorter
SIZE_STEP, LEAST_SIZE = 64, 128  # px: of the image size that is proposed


@dataclass(frozen=True)
class Declared:
    """Passes of one image, and calls of the denoiser that they and the reconstructions make."""

    passes: int
    calls: int


def declared(technique: Technique, config: ScreenConfig, images: int, levels: int) -> Declared:
    """Passes: the clean one of an image, and one per timestep and seed. Calls: theirs and those of reconstructions."""
    cost = technique.cost
    noised = images * levels * (1 if technique.seedless else config.seeds)
    drawn = min(config.image_samples, images) * config.image_steps
    calls = images * (1 + cost.per_image) + noised * cost.per_pass + drawn * (cost.per_pass - cost.start)
    return Declared(images + noised, round(calls))


def beforehand(
    backbone: Backbone, names: Sequence[str], config: ScreenConfig, images: int, seconds: float
) -> str:
    """How long the denoiser's calls of these techniques and of vanilla will take, and how it would be less.

    config: with the timesteps of the schedule. images: how many there are. seconds: of a vanilla call on one image.
    Calls that several techniques share are made once, so that it may be less; probes, metrics and what a technique
    learns are not in it.
    """
    calls = sum(_calls(name, config, images) for name in ("", *names))
    total = calls * seconds
    said = (
        f"about {duration(total)} before it is done: {calls} calls of the denoiser as declared, {_short(seconds)} each "
        f"on {backbone.device} at {backbone.image_size} px"
    )
    if total < LONG:
        return said
    smaller = backbone.image_size // 2 // SIZE_STEP * SIZE_STEP
    ways = [f"--image-size {smaller}"] if smaller >= LEAST_SIZE else []
    ways += ["fewer --samples", "fewer --techniques"]
    return f"{said}; shorter with {', '.join(ways[:-1])} or {ways[-1]}"


def _calls(name: str, config: ScreenConfig, images: int) -> int:
    """Of one technique, "" for vanilla; 0 where it cannot say."""
    try:
        technique = create_technique(name) if name else Technique()
        return declared(technique, config, images, len(config.timesteps or ())).calls
    except BaseException:  # a stranger's constructor or cost; its measuring meets it again and tells it
        return 0


def duration(seconds: float) -> str:
    """In the unit in which it is said: 40 s, 12 min, 3 h 20 min, 2 days."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest and hours < 10 else f"{round(minutes / 60)} h"
    return f"{round(minutes / 60 / 24)} days"


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
