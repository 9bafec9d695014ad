"""Denoise with a few numbers of the input beside the timestep: InfoDiffusion's auxiliary latent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from gate.adapters.formats import INFO_LATENT_FILE
from gate.adapters.networks import companion, load_tensors, local_file
from gate.errors import ConfigurationError, MissingWeightsError, UnsuitableError
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.request import Request, Response
    from gate.sample import SampleSet
    from gate.technique import CallNext


@dataclass(kw_only=True)
class InfoLatent(Technique):
    """InfoDiffusion (Wang et al. 2023) on a frozen backbone (ours): an encoder of x0 gives 32 numbers, a
    linear map of them joins the time embedding, in every call.

    The paper trains encoder and denoiser together and feeds the code to AdaGN in every block; here `gate fit
    info-latent` trains the encoder and the map alone, and the time embedding, which every block reads, carries them.
    weights: a safetensors file, a folder of `gate fit info-latent`, or a hub id; "" is tiny's own companion.
    weight_name: the file in a folder or repository. scale: of what is added; 0 is vanilla.
    """

    name = "info-latent"
    summary = "Tell the denoiser 32 numbers of the input, beside the timestep."
    source = "ours; after Wang et al. 2023, InfoDiffusion (arXiv 2306.08757)"
    families = frozenset({"text", "unconditional"})
    leak = "32 numbers of the input's own latent condition every call"
    neutral: ClassVar = {"scale": 0.0}

    weights: str = ""
    weight_name: str = ""
    scale: float = 1.0
    _net: Any = field(default=None, init=False, repr=False)
    _carried: Any = field(default=None, init=False, repr=False)

    def check(self, backbone: Backbone, samples: SampleSet) -> None:
        super().check(backbone, samples)
        if not self.weights and self.scale and backbone.name != "tiny":
            raise UnsuitableError(
                f"{self.name} has no encoder for {backbone.name}.",
                f"Fit one: gate fit info-latent --backbone {backbone.name} --images DIR --output NET; then screen "
                "'info-latent[weights=NET]'.",
            )
        try:
            self._load(backbone)
        except (MissingWeightsError, ConfigurationError) as error:
            raise UnsuitableError(str(error)) from error

    def _load(self, backbone: Backbone) -> Any:
        if self._net is None and self.scale:
            from gate.adapters.info_latent import load_info_latent

            source = self.weights or companion(
                backbone,
                "info-latent",
                fit="gate fit info-latent --data scenes-trained --output NET, then screen 'info-latent[weights=NET]'.",
            )
            file = local_file(source, self.weight_name or INFO_LATENT_FILE, "info-latent")
            self._net = load_info_latent(backbone, load_tensors(file), file.name)
        return self._net

    @contextlib.contextmanager
    def attach(self, backbone: Backbone) -> Iterator[None]:
        if not self.scale:
            yield
            return
        from gate.adapters.info_latent import joined

        self._load(backbone)
        with joined(backbone.denoiser) as self._carried:
            yield

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if not self.scale:
            return call_next(request)
        self._carried.added = self.scale * self._net(request.batch.x0)
        try:
            return call_next(request)
        finally:
            self._carried.added = None
