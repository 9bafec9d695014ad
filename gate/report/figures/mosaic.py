"""Many small pictures as one: a grid of tiles in one image is drawn in a blink, a hundred axes are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (h, w, 3)


def tile(picture: NDArray[Any], side: int) -> Image:
    """A picture, uint8 or float in [0, 1], as a square of side x side: enlarged in blocks or averaged."""
    from PIL import Image as Pillow

    values = picture
    if values.dtype != np.uint8:
        values = (np.nan_to_num(picture).clip(0, 1) * 255).round().astype(np.uint8)
    how = Pillow.Resampling.NEAREST if picture.shape[0] <= side else Pillow.Resampling.BOX
    return np.asarray(Pillow.fromarray(values).resize((side, side), how))


def grid(tiles: Sequence[Sequence[Image | None]], gap: int) -> Image:
    """Rows of tiles of one size on white, `gap` pixels apart. None stays white."""
    side = next(t.shape[0] for row in tiles for t in row if t is not None)
    rows, columns, step = len(tiles), max(len(row) for row in tiles), side + gap
    sheet = np.full((rows * step - gap, columns * step - gap, 3), 255, np.uint8)
    for i, row in enumerate(tiles):
        for j, one in enumerate(row):
            if one is not None:
                sheet[i * step : i * step + side, j * step : j * step + side] = one
    return sheet
