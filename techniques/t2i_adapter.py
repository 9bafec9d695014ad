"""Denoise with a T2I-Adapter that sees a control image made from the input: its edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from gate.adapters.control_images import ControlImages
from gate.adapters.formats import CONTROL_IMAGES
from gate.adapters.networks import companion, cross_width, load_network
from gate.adapters.weights import TakesWeights
from gate.errors import ConfigurationError, MissingWeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Request, Response
    from gate.technique import CallNext

PUBLIC: Mapping[str, Mapping[int, str]] = {
    "canny": {768: "TencentARC/t2iadapter_canny_sd15v2", 2048: "TencentARC/t2i-adapter-canny-sdxl-1.0"},
    "depth": {768: "TencentARC/t2iadapter_depth_sd15v2", 2048: "TencentARC/t2i-adapter-depth-midas-sdxl-1.0"},
}
RESIDUALS = "down_intrablock_additional_residuals"


@dataclass(kw_only=True)
class T2iAdapter(TakesWeights):
    """T2I-Adapter (Mou et al. 2023, Eq. 3): features of the control image, added once to every down block.

    It sees neither the noise nor the prompt, so it runs once per image. controls: what is drawn from the input: canny,
    soft-edges, tile, depth. weights: a folder or hub id; "" is the backbone's own: the embedded companion of tiny,
    the public ones of Stable Diffusion. scale: 0 is vanilla.
    """

    name = "t2i-adapter"
    summary = "Denoise under the input's own edges, through a T2I-Adapter."
    source = "Mou et al. 2023 (arXiv 2302.08453), section 3.2"
    families = frozenset({"unet", "sdxl"})
    leak = "the control image is made from the input's own pixels"
    neutral: ClassVar = {"scale": 0.0}

    controls: str = "canny"
    weights: str = ""
    scale: float = 1.0
    _net: Any = field(default=None, init=False, repr=False)
    _images: ControlImages = field(default_factory=ControlImages, init=False, repr=False)
    _last: tuple[Batch, list[Tensor]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.controls not in CONTROL_IMAGES:
            raise ValueError(f"controls must be one of {', '.join(CONTROL_IMAGES)}; got {self.controls!r}.")

    def _load(self, backbone: Backbone) -> None:
        if self._net is None and self.scale:
            self._net = load_adapter(backbone, self.weights or default_weights(backbone, self.controls))
            self._images.prepare(self.controls)

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        if not self.scale:
            return call_next(request)
        features = self._features(request.batch)
        before = request.residuals.get(RESIDUALS)
        both = features if before is None else [a + b for a, b in zip(before, features, strict=True)]
        return call_next(request.with_(residuals={**request.residuals, RESIDUALS: tuple(both)}))

    def _features(self, batch: Batch) -> list[Tensor]:
        """Of the batch's control images, one per down block; kept while the batch stays the same."""
        if self._last is None or self._last[0] is not batch:
            self._load(batch.backbone)
            images = self._images.of(self.controls, batch)[:, : self._net.config.in_channels]
            self._last = (batch, [self.scale * feature for feature in self._net(images)])
        return self._last[1]


def default_weights(backbone: Backbone, control: str) -> str:
    """The adapter of a backbone: the companion of tiny, else the public one for its width."""
    own = companion(
        backbone,
        f"t2i-adapter-{control}",
        fit=f"gate fit t2i-adapter --control {control} --data scenes-trained --output NET, "
        "then screen 't2i-adapter[weights=NET]'.",
    )
    width = cross_width(backbone.denoiser)
    if not own and width not in PUBLIC.get(control, {}):
        raise MissingWeightsError(
            f"No public {control} T2I-Adapter is known for {backbone.name}; give one as t2i-adapter[weights=ID]."
        )
    return own or PUBLIC[control][width]


def load_adapter(backbone: Backbone, source: str) -> Any:
    """A T2I-Adapter from a folder or the hub's cache, on the backbone's device."""
    from diffusers import T2IAdapter

    net = load_network(T2IAdapter, source, "T2I-Adapter", backbone)
    shape: Any = backbone.denoiser.config
    expected, found = list(shape.block_out_channels), list(net.config.channels)
    if expected != found:
        raise ConfigurationError(
            f"The T2I-Adapter {source} is for blocks of {found} channels, {backbone.name} has {expected}."
        )
    return net
