"""Input, vanilla's reconstruction and every technique's, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gate.report.figures import look
from gate.report.figures.mosaic import grid, tile

if TYPE_CHECKING:
    from gate.runs.directory import Run

SIDE, GAP, INCH = 128, 8, 0.78  # pixels of a tile, between tiles, and inches of a tile on paper
GREY = 128  # every pixel of what a run stores where nothing was generated
ABOVE = 1.3  # inches of title
NOTHING = "no image: it starts from\nthe clean latent, so\nnothing is generated"


def draw(run: Run) -> list[Any]:
    """A row for each technique by rank, a column per sample; the input and vanilla begin every page."""
    pictures, results = run.pictures, run.results
    if "reconstruction" not in pictures:
        return []
    rows = look.ranked(results)
    each = int((look.TALLEST - ABOVE) / INCH) - 2
    pages = [rows[i : i + each] for i in range(0, len(rows), each)] or [[]]
    return [
        _page(run, page, f", page {i} of {len(pages)}" if pages[1:] else "")
        for i, page in enumerate(pages, start=1)
    ]


def _page(run: Run, rows: Sequence[look.Row], page: str) -> Any:
    pictures, results = run.pictures, run.results
    places = results.axes.technique
    labels = ["input", "vanilla", *(_label(r) for r in rows)]
    sheets = [pictures["input"], pictures["reconstruction"][0]]
    sheets += [pictures["reconstruction"][places.index(r.name)] for r in rows]
    tiles = [[tile(picture, SIDE) for picture in sheet] for sheet in sheets]
    count, step = len(tiles[0]), SIDE + GAP
    margin = 0.5 + 0.085 * max(len(line) for label in labels for line in label.splitlines())
    figure = look.new_figure(max(margin + INCH * count, 4.4), ABOVE + INCH * len(tiles))
    axes = figure.add_subplot()
    axes.imshow(grid(tiles, GAP), interpolation="none")  # SVG then takes the pixels as they are
    axes.set_anchor("E")
    axes.set_yticks([i * step + SIDE / 2 for i in range(len(labels))], labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for i, sheet in enumerate(sheets):
        if (sheet == GREY).all():
            axes.text(
                count * step / 2,
                i * step + SIDE / 2,
                NOTHING,
                color="white",
                backgroundcolor="#808080",
                ha="center",
                va="center",
                fontsize=7.5,
            )
    config = results.config
    look.heading(
        figure,
        [
            f"Reconstructions, img2img at strength {config['strength']:g}{page}",
            f"{count} sample{'s' if count > 1 else ''} of {results.data.name}, {config['backbone']}",
            "%: image distance that is gone (higher is better; vanilla = 0)",
        ],
        size=9,
    )
    return figure


def _label(row: look.Row) -> str:
    images = {name: v.value for name, v in row.images.items() if v and look.finite(v.value)}
    gain = "".join(
        f"\n{100 * (v or 0):+.1f} %{f' {name}' if len(images) > 1 else ''}" for name, v in images.items()
    )
    mark = {"control": " (control)", "leak": " (leak)", "technique": ""}[look.kind(row)]
    return f"{row.name}{mark}{gain}"
