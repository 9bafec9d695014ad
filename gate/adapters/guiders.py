"""Guiders of diffusers, by what they are called and what they want; one formula that it does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gate.adapters.weakening import Weakness

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Guider:
    """Facts of one guider. cls: in diffusers.guiders, "" where the formula is here. weakness: what the second
    prediction lacks. scale: default; off: the scale without effect. scale_name, weak_name: what diffusers
    calls them.
    """

    title: str
    source: str
    cls: str
    scale: float = 7.5
    off: float = 1.0
    weakness: Weakness = "prompt"
    scale_name: str = "guidance_scale"
    weak_name: str = "pred_uncond"
    options: Mapping[str, Any] = field(default_factory=dict)


# guiders that weaken the denoiser: no prompt guidance beside it; eps + scale (eps - eps_weak) as in papers
ALONE = {"guidance_scale": 0.0, "use_original_formulation": True}
GUIDERS: dict[str, Guider] = {
    "cfg": Guider(
        "classifier-free guidance", "Ho and Salimans 2022 (arXiv 2207.12598)", "ClassifierFreeGuidance"
    ),
    "zero-star": Guider(
        "CFG-Zero*",
        "Fan et al. 2025 (arXiv 2503.18886)",
        "ClassifierFreeZeroStarGuidance",
        options={"zero_init_steps": 0},
    ),
    "tcfg": Guider(
        "tangential guidance", "Kwon et al. 2025 (arXiv 2503.18137)", "TangentialClassifierFreeGuidance"
    ),
    "apg": Guider(
        "adaptive projected guidance",
        "Sadat et al. 2024 (arXiv 2410.02416)",
        "AdaptiveProjectedGuidance",
        options={"eta": 0.0},
    ),
    "apg-mix": Guider(
        "adaptive projected guidance, HunyuanImage settings",
        "Sadat et al. 2024 (arXiv 2410.02416)",
        "AdaptiveProjectedMixGuidance",
        scale=10.0,
        scale_name="adaptive_projected_guidance_scale",
    ),
    "mambo": Guider(
        "magnitude-aware guidance",
        "MAMBO-G 2025 (arXiv 2508.03442)",
        "MagnitudeAwareGuidance",
        scale=10.0,
    ),
    "fdg": Guider("frequency-decoupled guidance", "Sadat et al. 2025 (arXiv 2506.19713)", "", scale=10.0),
    "pag": Guider(
        "perturbed-attention guidance",
        "Ahn et al. 2024 (arXiv 2403.17377)",
        "PerturbedAttentionGuidance",
        scale=3.0,
        off=0.0,
        weakness="scores",
        scale_name="perturbed_guidance_scale",
        weak_name="pred_cond_skip",
        options={
            **ALONE,
            "perturbed_guidance_layers": [0],
            "perturbed_guidance_start": 0.0,
            "perturbed_guidance_stop": 1.0,
        },
    ),
    "seg": Guider(
        "smoothed energy guidance",
        "Hong 2024 (arXiv 2408.00760)",
        "SmoothedEnergyGuidance",
        scale=3.0,
        off=0.0,
        weakness="queries",
        scale_name="seg_guidance_scale",
        weak_name="pred_cond_seg",
        options={**ALONE, "seg_guidance_layers": [0]},
    ),
    "slg": Guider(
        "skip-layer guidance",
        "Stability AI 2024, Stable Diffusion 3.5; after Hyung et al. 2024 (arXiv 2411.18664)",
        "SkipLayerGuidance",
        scale=2.8,
        off=0.0,
        weakness="block",
        scale_name="skip_layer_guidance_scale",
        weak_name="pred_cond_skip",
        options={
            **ALONE,
            "skip_layer_guidance_layers": [0],
            "skip_layer_guidance_start": 0.0,
            "skip_layer_guidance_stop": 1.0,
        },
    ),
    "auto": Guider(
        "autoguidance",
        "Karras et al. 2024 (arXiv 2406.02507)",
        "AutoGuidance",
        scale=2.0,
        weakness="blocks",
        options={"auto_guidance_layers": [0], "dropout": 1.0},
    ),
}


def new_guider(facts: Guider, scale: float) -> Any:
    """diffusers' guider, without its notice on stderr that guiders are experimental."""
    from diffusers import guiders
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return getattr(guiders, facts.cls)(**{**facts.options, facts.scale_name: scale})
    finally:
        logging.set_verbosity(verbosity)


def frequency_decoupled(strong: Tensor, weak: Tensor, *, high: float, low: float) -> Tensor:
    """weak + low L(d) + high (d - L(d)), d = strong - weak (Sadat et al. 2025, Alg. 2, with two levels).

    L is one level of a Laplacian pyramid down and up again; the pyramid is linear, so it acts on d alone.
    All (b, c, h, w).
    """
    difference = strong - weak
    smooth = _down_and_up(difference)
    return weak + low * smooth + high * (difference - smooth)


def _down_and_up(x: Tensor) -> Tensor:
    """The coarse half of a Laplacian pyramid (Burt and Adelson 1983), at full size. x: (b, c, h, w)."""
    from torch.nn import functional as F

    half = F.interpolate(_binomial(x), scale_factor=0.5, mode="bilinear", align_corners=False)
    return _binomial(F.interpolate(half, size=x.shape[-2:], mode="bilinear", align_corners=False))


def _binomial(x: Tensor) -> Tensor:
    """Blur by (1, 4, 6, 4, 1)/16 in both directions, reflected at the border where it is wide enough."""
    import torch
    from torch.nn import functional as F

    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 5, 5)
    mode = "reflect" if min(x.shape[-2:]) > 2 else "replicate"
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode=mode), kernel, groups=x.shape[1])
