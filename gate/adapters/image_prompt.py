"""Image prompts (IP-Adapter): attention processors and a projection that a UNet wears for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gate.backbones.hush import hushed

State = Mapping[str, Mapping[str, Tensor]]  # {"image_proj": {...}, "ip_adapter": {...}}


@dataclass(frozen=True)
class Wear:
    """What a UNet wears: its attention processors, its projection of image embeddings, and its config's word for it."""

    processors: dict[str, Any]
    projection: Any
    kind: Any

    @classmethod
    def of(cls, unet: Any) -> Wear:
        own = {k: v for k, v in unet.attn_processors.items() if not k.startswith("encoder_hid_proj.")}
        return cls(own, unet.encoder_hid_proj, unet.config.encoder_hid_dim_type)

    def put_on(self, unet: Any) -> None:
        """The same objects again, so that nothing of what was worn since is left."""
        del unet.encoder_hid_proj  # a Plus projection has processors of its own, which diffusers would count
        unet.set_attn_processor(dict(self.processors))
        unet.encoder_hid_proj = self.projection
        unet.config.encoder_hid_dim_type = self.kind


@contextlib.contextmanager
def worn(unet: Any, wear: Wear) -> Iterator[None]:
    """The UNet in other wear for a while."""
    own = Wear.of(unet)
    try:
        wear.put_on(unet)
        yield
    finally:
        own.put_on(unet)


def tailor(unet: Any, state: State, scale: float, blank: Tensor) -> Wear:
    """What an IP-Adapter's weights make of this UNet, by diffusers' own loader; the UNet is left as it was.

    blank: zeros of the shape of one image's embedding, (1, d) or (1, n, d), for calls that come without an image.
    Raises KeyError, RuntimeError, ValueError where the weights are another UNet's.
    """
    own = Wear.of(unet)
    try:
        with hushed():
            unet._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
        made = Wear.of(unet)
    finally:
        own.put_on(unet)
    for processor in made.processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [scale]
            processor.requires_grad_(False)
    made.projection.requires_grad_(False).eval()
    made.projection.blank = blank
    return made
