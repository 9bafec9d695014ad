"""What features look like: three principal components as colours, for input, vanilla and techniques."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gate.report.figures import look
from gate.report.figures.mosaic import grid, tile

if TYPE_CHECKING:
    from gate.runs.directory import Run

SIDE, GAP, INCH = 96, 6, 0.72
BLOCKS = 5  # blocks beside each other; a block is one technique, a tile per sample


def draw(run: Run) -> Any:
    """The input, its clean features, then features at the largest t through vanilla and each technique."""
    pictures, results = run.pictures, run.results
    if "pca" not in pictures:
        return None
    rows = look.ranked(results)
    places = results.axes.technique
    blocks = [("input", pictures["pca_image"]), ("input, t = 0", pictures["pca_input"])]
    blocks.append(("vanilla", pictures["pca"][0]))
    blocks += [(r.name, pictures["pca"][places.index(r.name)]) for r in rows]
    across = min(BLOCKS, len(blocks))
    down = math.ceil(len(blocks) / across)
    each = len(pictures["pca_image"])
    figure = look.new_figure(0.4 + across * (each * INCH + 0.15), 0.6 + down * (INCH + 0.24))
    cells = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    for axes, (name, sheet) in zip(cells, blocks, strict=False):
        axes.imshow(grid([[tile(picture, SIDE) for picture in sheet]], GAP), interpolation="none")
        axes.set_title(_short(name), fontsize=8, loc="center")
    t, layer = results.axes.timestep[-1], results.axes.picture_layer
    of = f" of {layer}" if layer else ""
    look.heading(
        figure,
        [
            f"Features{of} as colours: three principal components of the clean input's, shared by all, at t = {t}",
            f"{each} sample{'s' if each > 1 else ''} of {results.data.name}, "
            f"{results.config['backbone']}; closer to the input at t = 0 is better",
        ],
        size=9.5,
    )
    return figure


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
