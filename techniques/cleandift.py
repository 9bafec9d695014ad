"""Features of the clean latent, from weights that were fine-tuned for it: CleanDIFT."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gate.adapters.formats import CLEANDIFT_FILE
from gate.adapters.networks import companion, cross_width, load_tensors, local_file
from gate.adapters.weights import TakesFile
from gate.errors import ConfigurationError, MissingWeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Request

REPOSITORY = "CompVis/cleandift"
PUBLIC: Mapping[int, str] = {768: "cleandift_sd15_unet.safetensors", 1024: "cleandift_sd21_unet.safetensors"}


@dataclass(kw_only=True)
class CleanDift(TakesFile):
    """CleanDIFT (Stracke et al. 2024, Eq. 3): a denoiser that was taught to give its noisy features for clean latents.

    One call at t = 0 without noise, whatever the timestep and the seed. weights: a safetensors file, a folder of
    `gate fit cleandift`, or a hub id, each the state of a whole UNet; "" is the backbone's own: the embedded companion
    of tiny, the public ones of Stable Diffusion 1.5 and 2.1. weight_name: the file in a folder or repository.
    """

    name = "cleandift"
    summary = "Clean latents through a denoiser that was fine-tuned for them."
    source = "Stracke et al. 2024 (arXiv 2412.03439), section 3"
    families = frozenset({"text", "unconditional"})
    leak = "the input's own latent goes in without noise"
    compositions = ("prompt+cleandift",)  # of all that the study tried, the best by trained heads
    replaces_latent = True
    seedless = True

    _state: dict[str, Tensor] | None = field(default=None, init=False, repr=False)

    def attach(self, backbone: Backbone) -> AbstractContextManager[None]:
        from gate.adapters.merge import swapped

        return swapped(backbone, self._load(backbone))

    def start(self, request: Request) -> Request:
        clean = request.batch.clean_request(request.conditioning)
        return clean.with_(features=request.features, residuals=request.residuals)

    def _load(self, backbone: Backbone) -> dict[str, Tensor]:
        """{"unet.path": tensor} of the whole denoiser, under the name that the pipeline has for it."""
        if self._state is None:
            file = local_file(*self._where(backbone), "CleanDIFT denoiser")
            found, own = load_tensors(file), backbone.denoiser.state_dict()
            wrong = [k for k, v in own.items() if k not in found or found[k].shape != v.shape]
            if wrong or len(found) != len(own):
                raise ConfigurationError(
                    f"{file.name} is no denoiser of {backbone.name}'s shape: {len(wrong)} of {len(own)} tensors differ"
                    + (f", first {wrong[0]}." if wrong else f", {len(found) - len(own)} are too many.")
                )
            part = next(k for k, module in backbone.components.items() if module is backbone.denoiser)
            self._state = {f"{part}.{k}": v.to(own[k]) for k, v in found.items()}
        return self._state

    def _where(self, backbone: Backbone) -> tuple[str, str]:
        if self.weights:
            return self.weights, self.weight_name or CLEANDIFT_FILE
        own = companion(
            backbone,
            "cleandift",
            fit="gate fit cleandift --data scenes-trained --output NET, then screen 'cleandift[weights=NET]'.",
        )
        if own:
            return own, CLEANDIFT_FILE
        if backbone.family != "unet":  # the recipe aligns a UNet's mid block and up path
            raise MissingWeightsError(
                f"No CleanDIFT is known for {backbone.name}, and `gate fit cleandift` serves Stable Diffusion 1 and 2; "
                "give the state of a whole denoiser that was fitted elsewhere: 'cleandift[weights=FILE]'."
            )
        width = cross_width(backbone.denoiser)
        if width not in PUBLIC:
            raise MissingWeightsError(
                f"No public CleanDIFT is known for {backbone.name}; fit one: gate fit cleandift --backbone "
                f"{backbone.name} --images DIR --output NET, then screen 'cleandift[weights=NET]'."
            )
        return REPOSITORY, PUBLIC[width]
