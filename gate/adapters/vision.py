"""Models of transformers that look at an image: encoders, captioners, depth estimators."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gate.adapters.networks import how_to_get, local_folder
from gate.backbones.hush import hushed
from gate.backbones.trusted import NEVER, own_code, refuse_extras
from gate.errors import ConfigurationError, MissingWeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from gate.backbone import Backbone

Image = NDArray[np.uint8]
LONGEST_CAPTION = 40  # tokens
# transformers' own lists of classes, by the type that a config names: closed, where its Auto classes are open to code
KINDS: Mapping[str, str] = {
    "image-to-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "depth": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
}


@dataclass(frozen=True)
class VisionModel:
    """A model in evaluation mode with what prepares its images. tokenizer: where it answers in words."""

    model: Any
    processor: Any
    tokenizer: Any = None

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """(b, 3, h, w) as the model wants them. images: (h, w, 3) uint8."""
        prepared: Tensor = self.processor(list(images), return_tensors="pt")["pixel_values"]
        return prepared.to(self.model.device, self.model.dtype)

    def caption(self, image: Image) -> str:
        """One sentence, by greedy decoding: the same image always gives the same words."""
        import torch

        with torch.no_grad():
            tokens = self.model.generate(
                pixel_values=self.pixels([image]),
                max_new_tokens=LONGEST_CAPTION,
                do_sample=False,
                num_beams=1,
            )
        text: str = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())

    def depth(self, image: Image) -> Image:
        """(h, w, 3) uint8: the nearest point 255, the farthest 0, as the public depth ControlNets were shown."""
        import torch

        with torch.no_grad():
            inverse = self.model(pixel_values=self.pixels([image])).predicted_depth[:, None].float()
        full = torch.nn.functional.interpolate(inverse, image.shape[:2], mode="bicubic", align_corners=False)[
            0, 0
        ]
        spread = (full - full.min()) / (full.max() - full.min()).clamp_min(1e-9)
        grey = (spread * 255).round().to(torch.uint8).cpu().numpy()
        return np.repeat(grey[..., None], 3, axis=-1)


def load_vision(
    source: str,
    kind: str,
    what: str,
    *,
    device: Any = "cpu",
    dtype: Any = None,
    subfolder: str = "",
    processor: Callable[[Any], Any] | None = None,
    words: bool = False,
) -> VisionModel:
    """A model of transformers with its image processor (or what `processor` makes for the model), and its tokenizer
    where it gives words. kind: one of KINDS, or the class itself.

    Raises MissingWeightsError with the command that fetches it; nothing is ever downloaded here. Raises
    ConfigurationError where its own code would have to run.
    """
    import torch
    import transformers

    local: dict[str, Any] = {
        "local_files_only": True,
        "subfolder": subfolder,
        "trust_remote_code": False,  # without it transformers asks on the terminal, and takes a "y"
    }
    where = f"{source}/{subfolder}".rstrip("/")
    folder = ""
    try:
        # given a hub id, transformers asks the hub for adapters, whatever it is told
        folder = local_folder(source)
        refuse_extras(where, Path(folder) / subfolder)
        cls = getattr(transformers, _class_of(kind, where, what, Path(folder) / subfolder))
        model = cls.from_pretrained(folder, use_safetensors=True, dtype=dtype or torch.float32, **local)
        model = model.to(device).eval().requires_grad_(False)
        with hushed():
            prepare = (
                processor(model)
                if processor
                else transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False, **local)
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local) if words else None
    except (OSError, ValueError) as error:
        if folder and (code := own_code(Path(folder) / subfolder)):
            raise ConfigurationError(
                f"The {what} {where} does not load without its own code ({', '.join(code)}); {NEVER}."
            ) from error
        raise MissingWeightsError(
            f"The {what} {where} is not on this machine; {how_to_get(source)}"
        ) from error
    return VisionModel(model, prepare, tokenizer)


def _class_of(kind: str, where: str, what: str, folder: Path) -> str:
    """The class of transformers for what config.json calls `model_type`; `kind` itself where it is a class."""
    if kind not in KINDS:
        return kind
    from transformers.models.auto import modeling_auto

    known: Mapping[str, str] = getattr(modeling_auto, KINDS[kind])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = str(config.get("model_type")) if isinstance(config, dict) else ""
    if model_type not in known:
        raise ConfigurationError(
            f"The {what} {where} is of the type {model_type!r}, which is no {kind} model of transformers; {NEVER}."
        )
    return known[model_type]


def clip_processor(model: Any) -> Any:
    """Shorter side to the model's size, centre crop, CLIP's mean and deviation: what diffusers gives an IP-Adapter."""
    with hushed():  # that it works with Pillow alone is no news
        from transformers import CLIPImageProcessor

    size = model.config.image_size
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def load_image_encoder(source: str, folder: str, backbone: Backbone) -> Any:
    """The CLIP image encoder in `folder` of a folder or repository, with its resizing and normalisation."""
    return load_vision(
        source, "CLIPVisionModelWithProjection", "image encoder", device=backbone.device, dtype=backbone.dtype,
        subfolder=folder, processor=clip_processor,
    )  # fmt: skip
