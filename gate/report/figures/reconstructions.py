"""Input, vanilla's reconstruction and every technique's, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gate.report.figures import look
from gate.report.figures.mosaic import grid, tile

if TYPE_CHECKING:
    from gate.runs.directory import Run

SIDE, GAP, INCH = 128, 8, 0.78  # pixels of a tile, between tiles, and inches of a tile on paper


def draw(run: Run) -> Any:
    """A row for the input, vanilla and each technique by rank; a column per sample. None without images."""
    pictures, results = run.pictures, run.results
    if "reconstruction" not in pictures:
        return None
    rows = look.ranked(results)
    places = results.axes.technique
    labels = ["input", "vanilla", *(_label(r) for r in rows)]
    sheets = [pictures["input"], pictures["reconstruction"][0]]
    sheets += [pictures["reconstruction"][places.index(r.name)] for r in rows]
    tiles = [[tile(picture, SIDE) for picture in sheet] for sheet in sheets]
    count, step = len(tiles[0]), SIDE + GAP
    margin = 0.5 + 0.085 * max(len(line) for label in labels for line in label.splitlines())
    figure = look.new_figure(max(margin + INCH * count, 4.4), 1.3 + INCH * len(tiles))
    axes = figure.add_subplot()
    axes.imshow(grid(tiles, GAP), interpolation="none")  # SVG then takes the pixels as they are
    axes.set_anchor("E")
    axes.set_yticks([i * step + SIDE / 2 for i in range(len(labels))], labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    config = results.config
    figure.suptitle(
        f"Reconstructions, img2img at strength {config['strength']:g}\n"
        f"{count} sample{'s' if count > 1 else ''} of {results.data.name}, {config['backbone']}\n"
        "%: image distance that is gone (higher is better; vanilla = 0)",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    return figure


def _label(row: look.Row) -> str:
    images = {name: v.value for name, v in row.images.items() if v and look.finite(v.value)}
    gain = "".join(
        f"\n{100 * (v or 0):+.1f} %{f' {name}' if len(images) > 1 else ''}" for name, v in images.items()
    )
    mark = {"control": " (control)", "leak": " (leak)", "technique": ""}[look.kind(row)]
    return f"{row.name}{mark}{gain}"
