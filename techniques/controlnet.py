"""Denoise with a ControlNet that sees a control image made from the input: its edges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from gate.adapters.control_images import ControlImages
from gate.adapters.formats import DEPTH_MODEL
from gate.adapters.networks import companion, cross_width, load_network
from gate.adapters.weights import TakesWeights
from gate.errors import ConfigurationError, MissingWeightsError
from gate.technique import Cost, descend

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gate.backbone import Backbone
    from gate.request import Request, Response
    from gate.technique import CallNext

# public ControlNets by control and by the width of the denoiser's cross-attention
PUBLIC: Mapping[str, Mapping[int, str]] = {
    "canny": {
        768: "lllyasviel/control_v11p_sd15_canny",
        1024: "thibaud/controlnet-sd21-canny-diffusers",
        2048: "diffusers/controlnet-canny-sdxl-1.0",
    },
    "depth": {768: "lllyasviel/control_v11f1p_sd15_depth", 2048: "diffusers/controlnet-depth-sdxl-1.0"},
    "soft-edges": {768: "lllyasviel/control_v11p_sd15_softedge"},
    "tile": {768: "lllyasviel/control_v11f1e_sd15_tile"},
}


@dataclass(kw_only=True)
class ControlNet(TakesWeights):
    """ControlNet (Zhang et al. 2023, Eq. 9-10): residuals of a trained copy, added to the skips and the mid block.

    controls: what is drawn from the input, one or several of canny, soft-edges, tile, depth. weights: a folder or
    hub id each; () are the backbone's own: the embedded companion of tiny, the public ones of Stable Diffusion.
    depth_model: what estimates the depth. scale: one for all or one each; 0 is vanilla. lead, steps: where lead > 0,
    x_t is reached by `steps` deterministic DDIM steps from t + lead under the same control (the paper's 60 -> 50, for
    attention features: lead 10).
    """

    name = "controlnet"
    summary = "Denoise under the input's own edges, through a ControlNet."
    source = "Meng et al. 2024 (arXiv 2410.06719), section 5.3; Zhang et al. 2023 (arXiv 2302.05543)"
    families = frozenset({"unet", "sdxl"})
    leak = "the control image is made from the input's own pixels"
    neutral: ClassVar = {"scale": 0.0, "lead": 0}
    compositions = ("prompt+controlnet", "prompt+controlnet+lora")

    controls: tuple[str, ...] = ("canny",)
    weights: tuple[str, ...] = ()
    scale: tuple[float, ...] = (1.0,)
    lead: int = 0
    steps: int = 1
    depth_model: str = DEPTH_MODEL
    _nets: list[Any] | None = field(default=None, init=False, repr=False)
    _images: ControlImages = field(default_factory=ControlImages, init=False, repr=False)

    def __post_init__(self) -> None:
        self._images.depth_model = self.depth_model
        self.controls, self.weights = _several(self.controls), _several(self.weights)
        scales: Any = self.scale if isinstance(self.scale, (tuple, list)) else (self.scale,)
        self.scale = tuple(float(s) for s in scales) * (len(self.controls) if len(scales) == 1 else 1)
        unknown = [c for c in self.controls if c not in PUBLIC]
        if unknown or not self.controls:
            raise ValueError(f"controls must be of {', '.join(PUBLIC)}; got {', '.join(unknown) or 'none'}.")
        if len(self.scale) != len(self.controls) or len(self.weights) not in (0, len(self.controls)):
            raise ValueError("give one scale, or one for each control, and weights for none or for each.")
        if self.lead < 0 or self.steps < 1:
            raise ValueError(
                f"lead must be 0 or more and steps at least 1; got {self.lead} and {self.steps}."
            )

    @property
    def cost(self) -> Cost:
        return Cost(per_pass=1.0 + (self.steps if self.lead else 0))

    def _load(self, backbone: Backbone) -> list[Any]:
        if self._nets is None:
            given = self.weights or (None,) * len(self.controls)
            self._nets = [
                load_net(backbone, source or default_weights(backbone, control)) if scale else None
                for control, source, scale in zip(self.controls, given, self.scale, strict=True)
            ]
            for control, scale in zip(self.controls, self.scale, strict=True):
                if scale:
                    self._images.prepare(control)
        return self._nets

    def denoise(self, request: Request, call_next: CallNext) -> Response:
        def controlled(inner: Request) -> Response:
            return call_next(inner.with_(residuals=self._residuals(inner)))

        if self.lead and request.origin == "noised":
            request = descend(request, self.lead, self.steps, lambda inner: controlled(inner).prediction)
        return controlled(request)

    def _residuals(self, request: Request) -> dict[str, Any]:
        """What the nets add, on top of what the request has already."""
        batch = request.batch
        backbone, residuals = batch.backbone, dict(request.residuals)
        for control, net, scale in zip(self.controls, self._load(backbone), self.scale, strict=True):
            if net is None:
                continue
            down, mid = net(
                request.x_t.to(backbone.dtype),
                request.t_condition.to(backbone.device),
                encoder_hidden_states=request.conditioning.prompt_embeds,
                controlnet_cond=self._images.of(control, batch),
                conditioning_scale=scale,
                added_cond_kwargs=backbone.added(request.conditioning),  # type: ignore[attr-defined]
                return_dict=False,
            )
            before = residuals.get("down_block_additional_residuals")
            residuals["down_block_additional_residuals"] = tuple(
                down if before is None else (a + b for a, b in zip(before, down, strict=True))
            )
            residuals["mid_block_additional_residual"] = mid + residuals.get(
                "mid_block_additional_residual", 0
            )
        return residuals


def _several(value: Any) -> tuple[str, ...]:
    """One name, several, or a text with + between them (commas part settings on the command line)."""
    names = [value] if isinstance(value, str) else list(value)
    return tuple(name for name in (names[0].split("+") if len(names) == 1 else names) if name)


def default_weights(backbone: Backbone, control: str) -> str:
    """The ControlNet of a backbone: the companion in its own folder, else the public one for its width."""
    own = companion(
        backbone,
        f"controlnet-{control}",
        fit=f"gate fit controlnet --control {control} --data scenes-trained --output NET, "
        "then screen 'controlnet[weights=NET]'.",
    )
    if own:
        return own
    width = cross_width(backbone.denoiser)
    if width not in PUBLIC[control]:
        raise MissingWeightsError(
            f"No public {control} ControlNet is known for {backbone.name}; give one as controlnet[weights=ID]."
        )
    return PUBLIC[control][width]


def load_net(backbone: Backbone, source: str) -> Any:
    """A ControlNet from a folder or the hub's cache, on the backbone's device."""
    from diffusers import ControlNetModel

    net = load_network(ControlNetModel, source, "ControlNet", backbone)
    expected, found = cross_width(backbone.denoiser), cross_width(net)
    if expected != found:
        raise ConfigurationError(
            f"The ControlNet {source} is for a cross-attention of {found}, {backbone.name} has {expected}."
        )
    return net
