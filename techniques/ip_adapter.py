"""Denoise with the input itself as an image prompt: IP-Adapter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from gate.adapters.formats import IMAGE_ENCODER, IP_ADAPTER_FILE, PUBLIC_IP_ADAPTERS
from gate.adapters.networks import companion, cross_width, load_tensors, local_file
from gate.adapters.weights import TakesFile
from gate.errors import ConfigurationError, MissingWeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone
    from gate.request import Batch, Conditioning


@dataclass(kw_only=True)
class IpAdapter(TakesFile):
    """IP-Adapter (Ye et al. 2023, Eq. 5): a second cross-attention, to an embedding of the input image.

    weights: a safetensors file, a folder of `gate fit ip-adapter`, or a hub id; "" is the backbone's own: the
    embedded companion of tiny, the public ones of Stable Diffusion. weight_name: the file in a folder or repository.
    image_encoder: the encoder's folder there; "" is `image_encoder` beside the file. scale: of the second attention;
    0 is vanilla.
    """

    name = "ip-adapter"
    summary = "Prompt with the input image itself, through an IP-Adapter."
    source = "Ye et al. 2023 (arXiv 2308.06721), section 3.2; rejected by Meng et al. 2024, section 5.2"
    families = frozenset({"unet", "sdxl"})
    leak = "the image prompt is made from the input's own pixels"
    neutral: ClassVar = {"scale": 0.0}

    image_encoder: str = ""
    scale: float = 1.0
    _wear: Any = field(default=None, init=False, repr=False)
    _encoder: Any = field(default=None, init=False, repr=False)
    _embeds: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def _load(self, backbone: Backbone) -> None:
        if self._wear is not None or not self.scale:
            return
        import torch

        from gate.adapters.image_prompt import tailor

        source, name, folder = self._where(backbone)
        file = local_file(source, name, "IP-Adapter")
        state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for key, value in load_tensors(file).items():
            part, _, rest = key.partition(".")
            state.setdefault(part, {})[rest] = value.to(backbone.device, backbone.dtype)
        from gate.adapters.vision import load_image_encoder

        self._encoder = load_image_encoder(source, folder, backbone)
        one = self._encoder.model.config
        # IP-Adapter Plus reads the last but one layer's patches, the plain one the pooled embedding
        self._patches = "proj.weight" not in state["image_proj"]
        patches = (one.image_size // one.patch_size) ** 2 + 1
        blank = torch.zeros((1, patches, one.hidden_size) if self._patches else (1, one.projection_dim))
        try:
            self._wear = tailor(
                backbone.denoiser, state, self.scale, blank.to(backbone.device, backbone.dtype)
            )
        except (KeyError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ConfigurationError(f"{file.name} is no IP-Adapter for {backbone.name}: {first}") from error

    def _where(self, backbone: Backbone) -> tuple[str, str, str]:
        """Folder or hub id, the file in it, and the folder of the image encoder in it."""
        if not self.weights:
            own = companion(
                backbone,
                "ip-adapter",
                fit="gate fit ip-adapter --data scenes-trained --output NET, then screen 'ip-adapter[weights=NET]'.",
            )
            if own:
                return own, IP_ADAPTER_FILE, IMAGE_ENCODER
            width = cross_width(backbone.denoiser)
            if width not in PUBLIC_IP_ADAPTERS:
                raise MissingWeightsError(
                    f"No public IP-Adapter is known for {backbone.name}; give one as ip-adapter[weights=ID]."
                )
            return PUBLIC_IP_ADAPTERS[width]
        path = Path(self.weights).expanduser()
        where, name = (
            (str(path.parent), path.name)
            if path.is_file()
            else (str(self.weights), self.weight_name or IP_ADAPTER_FILE)
        )
        return where, name, self.image_encoder or str(PurePosixPath(name).parent / IMAGE_ENCODER)

    def attach(self, backbone: Backbone) -> AbstractContextManager[None]:
        if not self.scale:
            return nullcontext()
        from gate.adapters.image_prompt import worn

        if self._wear is None:
            self._load(backbone)
        return worn(backbone.denoiser, self._wear)

    def condition(self, conditioning: Conditioning, batch: Batch) -> Conditioning:
        if not self.scale:
            return conditioning
        import torch

        for sample in batch.samples:
            if sample.id not in self._embeds:
                self._embeds[sample.id] = self._embed(sample.image)
        embeds = torch.stack([self._embeds[sample.id] for sample in batch.samples])
        return conditioning.replace(image_embeds=embeds.to(batch.backbone.device, batch.backbone.dtype))

    def _embed(self, image: Any) -> Tensor:
        """(1, d), or (1, n, d) for the Plus kind. One image at a time: its bits do not depend on its neighbours."""
        import torch

        with torch.no_grad():
            seen = self._encoder.model(self._encoder.pixels([image]), output_hidden_states=self._patches)
        embeds: Tensor = seen.hidden_states[-2] if self._patches else seen.image_embeds
        return embeds
