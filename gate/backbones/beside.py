"""What a denoiser is given beside latent, time and text: its neutral value where it has one, else a refusal by name.

Read off model_index.json and the denoiser's config alone, so that `gate list layers` says the same as loading does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gate.errors import ConfigurationError

Extra = Literal["", "inpaint", "zeros"]
SERVED = (
    "gate gives the mask and the masked image of an inpainting model and the image of InstructPix2Pix their neutral "
    "values, and has none for others; load the model that it was made from."
)
WANTS = {  # by what is in a pipeline's class name
    "Upscale": "an image to enlarge",
    "SuperRes": "an image to enlarge",
    "Depth2Img": "a depth map",
    "Marigold": "an image to measure",
    "Control": "a control image",
    "PaintByExample": "an image to paint from",
    "UnCLIP": "an image embedding",
}


def latent_channels(config: Mapping[str, Any]) -> int:
    """Of the latent itself (of the packed one in Flux), without what lies beside it and without learned variances."""
    given = int(config["in_channels"])
    return min(given, int(config.get("out_channels") or given))


def extra_channels(name: str, index: Mapping[str, Any], config: Mapping[str, Any], own: int) -> Extra:
    """What a denoiser's channels beyond the latent's `own` are; "" where it has none.

    "inpaint": a mask of ones (nothing is kept) and the latent of the image that it leaves, grey; for Flux in the other
    order. "zeros": InstructPix2Pix's image, whose zeros are "no image", as in its training (Brooks et al. 2023).
    index: a model_index.json, {} where only the denoiser's config is at hand: then zeros do. Raises ConfigurationError
    where they have no neutral value.
    """
    extra, pipeline = int(config["in_channels"]) - own, str(index.get("_class_name") or "")
    if not extra:
        return ""
    if pipeline == "FluxFillPipeline" or (extra == own + 1 and not _wants(pipeline)):
        return "inpaint"
    if not index or (extra == own and "InstructPix2Pix" in pipeline):
        return "zeros"
    raise ConfigurationError(
        f"{name} is a {pipeline or config.get('_class_name')}: beside the latent its denoiser is given {extra} "
        f"channels ({_wants(pipeline) or 'of what, its class does not say'}); {SERVED}"
    )


def refuse_classes(name: str, index: Mapping[str, Any], config: Mapping[str, Any], *, labels: bool) -> None:
    """Raise ConfigurationError where the time embedding is added something that no image comes with.

    labels: whether the family knows class labels.
    """
    kind, pipeline = (
        config.get("class_embed_type"),
        str(index.get("_class_name") or config.get("_class_name")),
    )
    if not kind and not config.get("num_class_embeds"):
        return
    if labels and not kind:
        return
    what = _wants(pipeline) or {
        "projection": "an image embedding",
        "simple_projection": "an embedding",
        "timestep": "a second timestep",
    }.get(str(kind), "a class or a noise level")
    raise ConfigurationError(
        f"{name} is a {pipeline}: it needs {what} for every image (class_embed_type {kind or 'label'}), which has no "
        "neutral value; load a model without."
    )


def _wants(pipeline: str) -> str:
    return next((what for part, what in WANTS.items() if part in pipeline), "")


def guidance_embedding(config: Mapping[str, Any], x: Tensor) -> Tensor | None:
    """(b, time_cond_proj_dim) of a UNet that was distilled under guidance (Luo et al. 2023, Latent Consistency Models):
    w = 0, the plain prediction, as its pipelines tell it at guidance 1. None for others.

    Sines and cosines of 1000 w, so zeros and ones.
    """
    width = int(config.get("time_cond_proj_dim") or 0)
    if not width:
        return None
    half = width // 2
    row = torch.cat([x.new_zeros(half), x.new_ones(half), x.new_zeros(width % 2)])
    return row.expand(len(x), -1)
