"""Names beside points without covering each other: each takes the nearest free place around its point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.patheffects import withStroke

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
_ANGLES = (0, 180, 45, 315, 135, 225, 90, 270, 20, 340, 160, 200)
_RADII = (9, 18, 30, 45, 62, 80, 100, 125, 150)
_POINT = 5.0  # half the side of what a marker covers


def place_labels(figure: Any, axes: Any, points: Sequence[tuple[float, float, str]], size: float = 8) -> None:
    """Write the names. points: (x, y, name) in data units. A far label gets a line to its point."""
    figure.canvas.draw()  # settles the layout: places are chosen in pixels
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    frame: Box = axes.get_window_extent(renderer).extents
    centres = [tuple(axes.transData.transform((x, y))) for x, y, _ in points]
    taken: list[Box] = [_around(c, _POINT * scale) for c in centres]
    legend = axes.get_legend()
    if legend is not None:
        taken.append(tuple(legend.get_window_extent(renderer).extents))
    for (x, y, name), centre in zip(points, centres, strict=True):
        text = axes.annotate(name, (x, y), (0, 0), "data", "offset points", fontsize=size, zorder=5)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        extent = text.get_window_extent(renderer)
        dx, dy, box = _free_place(centre, extent.width, extent.height, taken, frame, scale)
        taken.append(box)
        text.set_position((dx / scale, dy / scale))
        if math.hypot(dx, dy) > 0 and _gap(centre, box) > 12 * scale:
            _leader(axes, centre, box)


def _around(centre: Sequence[float], half: float) -> Box:
    return centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half


def _free_place(
    centre: Sequence[float], width: float, height: float, taken: Sequence[Box], frame: Box, scale: float
) -> tuple[float, float, Box]:
    """The offset of the text's lower left corner and its box, at the nearest place that covers least."""
    best: tuple[float, float, float, Box] | None = None
    for radius in _RADII:
        for angle in _ANGLES:
            reach = radius * scale
            along, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = reach * along - (width if along < -0.1 else width / 2 if abs(along) <= 0.1 else 0)
            y = reach * up - height / 2
            left, bottom = centre[0] + x, centre[1] + y
            box = (left, bottom, left + width, bottom + height)
            covered = sum(_overlap(box, other) for other in taken) + 3 * _outside(box, frame)
            if best is None or covered < best[0] - 1e-9:
                best = (covered, x, y, box)
            if covered == 0:
                return x, y, box
    assert best is not None
    return best[1:]


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Box, frame: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)


def _gap(centre: Sequence[float], box: Box) -> float:
    x, y = _nearest(centre, box)
    return math.hypot(x - centre[0], y - centre[1])


def _nearest(centre: Sequence[float], box: Box) -> tuple[float, float]:
    return min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3])


def _leader(axes: Any, centre: Sequence[float], box: Box) -> None:
    ends = axes.transData.inverted().transform([centre, _nearest(centre, box)])
    axes.plot(ends[:, 0], ends[:, 1], color="#9A9A9A", linewidth=0.6, zorder=1)
