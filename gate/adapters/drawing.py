"""Control images made from the input itself: what ControlNets and T2I-Adapters are told about it.

Every drawing function takes an image (h, w, 3) uint8 RGB and gives one of the same shape and type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gate.adapters.formats import CONTROL_IMAGES, DEPTH_MODEL
from gate.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Image = NDArray[np.uint8]
TANGENT = 0.4142135623730951  # of 22.5 degrees: a gradient flatter than this is compared left and right


def canny(image: Image, *, low: float = 100, high: float = 200, sigma: float = 0.0) -> Image:
    """Edges one pixel wide (Canny 1986), 255 on 0.

    Gaussian of `sigma` pixels (0: none, which is what the public canny ControlNets were trained on), Sobel per channel
    with repeated borders, of the three channels the one with the largest |gx| + |gy|; a pixel survives that is
    largest across its edge, among the four directions nearest to its gradient; edges are what lies above `high` and
    what touches them, through neighbours above `low`. With sigma 0 equal to OpenCV's Canny at the same thresholds.
    """
    from scipy import ndimage

    pixels = image.astype(np.float64 if sigma else np.int64)
    if sigma:
        pixels = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    gx, gy = _strongest_gradient(pixels)
    size = np.abs(gx) + np.abs(gy)
    candidates = _largest_across(gx, gy, size) & (size > low)
    regions, _ = ndimage.label(candidates, structure=np.ones((3, 3)))
    kept = np.unique(regions[candidates & (size > high)])
    edges = np.isin(regions, kept[kept > 0])
    return np.repeat((edges * np.uint8(255))[..., None], 3, axis=-1).astype(np.uint8)


def _strongest_gradient(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sobel gx, gy of the channel with the largest |gx| + |gy|, the first where they tie: (h, w, c) -> (h, w) twice."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:, 2:] - padded[:, :-2]
    down = padded[2:] - padded[:-2]
    gx = across[:-2] + 2 * across[1:-1] + across[2:]
    gy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    channel = (np.abs(gx) + np.abs(gy)).argmax(axis=-1)[..., None]
    return np.take_along_axis(gx, channel, -1)[..., 0], np.take_along_axis(gy, channel, -1)[..., 0]


def _largest_across(gx: NDArray[Any], gy: NDArray[Any], size: NDArray[Any]) -> NDArray[np.bool_]:
    """Non-maximum suppression; of two equal neighbours across a straight edge the first stays, outside counts as 0."""
    around = np.pad(size, 1)
    h, w = size.shape

    def at(dy: int, dx: int) -> NDArray[Any]:
        return around[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]

    flat, steep = np.abs(gy) < TANGENT * np.abs(gx), np.abs(gy) > (TANGENT + 2) * np.abs(gx)
    horizontal = (size > at(0, -1)) & (size >= at(0, 1))
    vertical = (size > at(-1, 0)) & (size >= at(1, 0))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    opposed = (gx < 0) ^ (gy < 0)
    diagonal = np.where(opposed, rising, falling)
    return np.where(flat, horizontal, np.where(steep, vertical, diagonal)).astype(np.bool_)


def soft_edges(image: Image) -> Image:
    """Sobel magnitude of the luminance, scaled so that its largest value is 255: edges with their strength."""
    from scipy import ndimage

    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    size = np.hypot(ndimage.sobel(luma, 1, mode="nearest"), ndimage.sobel(luma, 0, mode="nearest"))
    scaled = np.round(255 * size / max(float(size.max()), 1e-9)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=-1)


def tile(image: Image, *, factor: int = 4) -> Image:
    """The image averaged over squares of `factor` pixels and enlarged again: its layout and colours."""
    from PIL import Image as Picture

    picture = Picture.fromarray(image)
    small = (max(1, picture.width // factor), max(1, picture.height // factor))
    shrunk = picture.resize(small, Picture.Resampling.BOX)
    return np.asarray(shrunk.resize(picture.size, Picture.Resampling.BILINEAR))


CONTROLS: dict[str, Callable[[Image], Image]] = {"canny": canny, "soft-edges": soft_edges, "tile": tile}


def drawer(control: str, depth_model: str = DEPTH_MODEL) -> Callable[[Image], Image]:
    """What draws the control image `control`. depth_model: a depth estimator of transformers, for "depth" alone.

    Raises UsageError for an unknown control, MissingWeightsError where the depth estimator is not on this machine.
    """
    if control == "depth":
        from gate.adapters.vision import load_vision

        return load_vision(depth_model, "depth", "depth estimator").depth
    if control not in CONTROLS:
        raise UsageError(f"Control {control!r} is not known; choose {', '.join(CONTROL_IMAGES)}.")
    return CONTROLS[control]


def as_tensor(draw: Callable[[Image], Image], images: Iterable[Image]) -> Tensor:
    """The control images of some images, (b, 3, h, w) float32 in [0, 1]."""
    import torch

    drawn = [torch.from_numpy(draw(image).copy()).permute(2, 0, 1) for image in images]
    return torch.stack(drawn).float() / 255
