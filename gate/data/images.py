"""One image: read it whatever its format, make it 8-bit RGB, fit it to a square."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gate.errors import ConfigurationError, UsageError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FOREIGN = (
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".psd",
    ".svg",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".tga",
)
MIN_SIDE = 8  # px, of the shorter side of a file: less than that is no picture of anything
# Decoders are named, so that a file that calls itself .png never reaches an exotic one (EPS: Ghostscript).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
MAX_PIXELS = 100_000_000
UNLABELLED = 255  # in a mask file; -1 in a Sample
ASPECT_TOLERANCE = 0.02  # a mask may have another resolution than its image, never another shape

Box = tuple[float, float, float, float]


class UnreadableError(ConfigurationError):
    """One image file, or its mask, cannot be used. The text is the reason, without the file's name."""


def read_image(path: Path) -> Image.Image:
    """The first frame of a file as an RGB image, upright (EXIF). Raises UnreadableError."""
    try:
        with warnings.catch_warnings(), _open(path) as image:
            warnings.simplefilter("ignore")  # damaged metadata is no reason to bother anyone
            return to_rgb(image)
    except UnreadableError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them raise
        raise UnreadableError(_reason(error)) from error


def read_picture(path: Path) -> Image.Image:
    """`read_image` of a file that is large enough to show something. Raises UnreadableError."""
    image = read_image(path)
    if min(image.size) < MIN_SIDE:
        raise UnreadableError(f"is {image.width} x {image.height}; a side has {MIN_SIDE} pixels or more")
    return image


def read_mask(path: Path) -> npt.NDArray[np.int16]:
    """Per-pixel classes (h, w) of a palette or grey file; 255 becomes -1. Raises UnreadableError."""
    try:
        with _open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:
        raise UnreadableError(f"its mask: {_reason(error)}") from error
    if mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise UnreadableError(f"its mask holds colours ({mode}); class numbers need a palette or grey image")
    if int(values.max()) > UNLABELLED:
        raise UnreadableError(f"its mask holds {int(values.max())}; classes are 0 to 254, unlabelled is 255")
    classes = values.astype(np.int16)
    return np.where(classes == UNLABELLED, np.int16(-1), classes)


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise UnreadableError("is not a regular file")
    if path.stat().st_size == 0:
        raise UnreadableError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", Image.DecompressionBombWarning
        )  # the limit is checked below, before decoding
        image = Image.open(path, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UnreadableError(f"{image.width} x {image.height} is more than {MAX_PIXELS // 10**6} megapixels")
    return image


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without its path, which Pillow and the system put into some messages."""
    if isinstance(error, UnreadableError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "is not an image, or is damaged at its start"
    if isinstance(error, Image.DecompressionBombError):
        return f"is more than {MAX_PIXELS // 10**6} megapixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})"


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: turned upright by its EXIF orientation, composited on white, 16 bits scaled to 8.

    Raises UnreadableError for numbers that have no obvious range (32-bit integers, floats outside [0, 1]).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow's conversion of 16-bit grey to RGB would clip at 255
        return Image.fromarray(_scale(np.asarray(image).astype(np.int64), 65535)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_scale(np.asarray(image), 1)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scale(values: npt.NDArray[Any], top: int) -> npt.NDArray[np.uint8]:
    if not (values.min() >= 0 and values.max() <= top):
        raise UnreadableError(f"its values, {values.min()} to {values.max()}, are outside 0 to {top}")
    return np.rint(values * (255 / top)).astype(np.uint8)


def fit_image(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Shorter side resized to `size` (Lanczos), the centre square of it: (size, size, 3) uint8 RGB.

    Any mode and EXIF orientation; see `to_rgb`.
    """
    check_size(size)
    if 0 in image.size:
        raise ConfigurationError(f"An image of {image.width} x {image.height} pixels has no content.")
    rgb = to_rgb(image)
    # Resampling the centre square equals resizing all and cropping, and never enlarges a strip of 1 x 10000.
    fitted = rgb.resize((size, size), Image.Resampling.LANCZOS, box=centre_square(*rgb.size))
    return np.array(fitted, dtype=np.uint8)


def fit_mask(mask: npt.NDArray[Any], size: int) -> npt.NDArray[np.int16]:
    """`fit_image` for classes: nearest neighbour. mask: (h, w) integers. Returns (size, size) int16."""
    values = Image.fromarray(mask.astype(np.int32))
    square = centre_square(*values.size)
    return np.array(values.resize((size, size), Image.Resampling.NEAREST, box=square)).astype(np.int16)


def centre_square(width: int, height: int) -> Box:
    """(left, top, right, bottom) in pixels of the largest centred square."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def check_size(size: int) -> None:
    """Refuse a side that no image can have."""
    if size < 1:
        raise UsageError(f"The image size must be at least 1 pixel, not {size}.")
