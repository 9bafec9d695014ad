"""Names beside points without covering each other: each takes the nearest free place around its point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.patheffects import withStroke

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
Line = tuple[Point, Point]
_RADII = (9, 18, 30, 45, 62, 80, 100, 125, 150, 180, 215, 250)
_FIRST = (0, 180, 45, 315, 135, 225, 90, 270)  # angles that read best; further out, every 15 degrees
_POINT = 5.0  # half the side of what a marker covers
LEADER_COLOUR = "#9A9A9A"
_LEADER = 12.0  # a label further off than this gets a line to its point
# costs beside a covered square pixel: a name on a drawn line, a leader over a point, a pixel of leader
_STROKE, _CROSSED, _FAR = 15.0, 200.0, 0.2
_BEYOND, _LABEL = 1e4, 1e6  # a pixel beyond the axes, a name covered or crossed: there is no place then


def place_labels(
    figure: Any,
    axes: Any,
    points: Sequence[tuple[float, float, str]],
    size: float = 8,
    *,
    others: Sequence[Point] = (),
) -> None:
    """Write the names. points: (x, y, name) in data units; others: points without a name, not to be covered.

    A far label gets a line to its point. No name covers another or leaves the axes, and no line crosses a name or a
    line: a name for which there is no such place is not written, so give those first that matter most.
    """
    figure.canvas.draw()  # settles the layout: places are chosen in pixels
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    frame: Box = axes.get_window_extent(renderer).extents
    marks = [tuple(axes.transData.transform(p)) for p in (*((x, y) for x, y, _ in points), *others)]
    dots = [_around(c, _POINT * scale) for c in marks]
    strokes = _strokes(axes)
    names: list[Box] = []
    lines: list[Line] = []
    legend = axes.get_legend()
    if legend is not None:
        names.append(tuple(legend.get_window_extent(renderer).extents))
    for (x, y, name), centre in zip(points, marks, strict=False):
        text = axes.annotate(
            name, (x, y), (0, 0), "data", "offset points", fontsize=size, va="bottom", zorder=5
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        extent = text.get_window_extent(renderer)

        def cost(box: Box, centre: Point = centre) -> float:
            line = _leader(centre, box, scale)
            bad = sum(_overlap(box, other) for other in names) + sum(_crosses(one, box) for one in lines)
            light = sum(_overlap(box, dot) for dot in dots) + _STROKE * sum(_crosses(s, box) for s in strokes)
            if line is not None:
                bad += sum(_crosses(line, other) for other in names) + sum(
                    _meet(line, other) for other in lines
                )
                over = [d for d in dots if not _overlap(d, _around(centre, 1)) and _crosses(line, d)]
                light += _CROSSED * len(over) + _FAR * math.dist(*line)
            return _LABEL * bad + light + _BEYOND * _outside(box, frame)

        box = _best(_places(centre, extent.width, extent.height, scale), cost)
        if cost(box) >= _BEYOND:
            text.remove()
            continue
        names.append(box)
        text.set_position(((box[0] - centre[0]) / scale, (box[1] - centre[1]) / scale))
        if (line := _leader(centre, box, scale)) is not None:
            lines.append(line)
            ends = axes.transData.inverted().transform(line)
            axes.plot(ends[:, 0], ends[:, 1], color=LEADER_COLOUR, linewidth=0.6, zorder=1)


def _strokes(axes: Any) -> list[Line]:
    """Every line that is drawn, steps and whiskers too, piece by piece in pixels."""
    found: list[Line] = []
    for line in axes.lines:
        if line.get_linestyle() == "None":
            continue
        ends = line.get_transform().transform(line.get_xydata())
        if line.get_drawstyle() == "steps-post":
            ends = [p for a, b in pairwise(ends) for p in (a, (b[0], a[1]))] + [ends[-1]]
        found += [(tuple(a), tuple(b)) for a, b in pairwise(ends)]
    for bars in (c for c in axes.collections if hasattr(c, "get_segments")):
        for segment in bars.get_segments():
            a, b = axes.transData.transform(segment)
            found.append((tuple(a), tuple(b)))
    return found


def _places(centre: Point, width: float, height: float, scale: float) -> Iterator[Box]:
    """Boxes of the text around its point, near ones first."""
    for radius in _RADII:
        for angle in dict.fromkeys((*_FIRST, *(range(0, 360, 15) if radius > _RADII[1] else ()))):
            along, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            back = width if along < -0.1 else width / 2 if along <= 0.1 else 0
            left = centre[0] + radius * scale * along - back
            bottom = centre[1] + radius * scale * up - height / 2
            yield left, bottom, left + width, bottom + height


def _best(boxes: Iterator[Box], cost: Any) -> Box:
    """The first that costs nothing, else the cheapest."""
    cheapest, least = next(boxes), math.inf
    for box in (cheapest, *boxes):
        found = cost(box)
        if found < least - 1e-9:
            cheapest, least = box, found
        if found == 0:
            break
    return cheapest


def _around(centre: Sequence[float], half: float) -> Box:
    return centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Box, frame: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)


def _leader(centre: Point, box: Box, scale: float) -> Line | None:
    """From the point to the nearest end of its name, where that is far."""
    end = min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3])
    return (centre, end) if math.dist(centre, end) > _LEADER * scale else None


def _crosses(line: Line, box: Box) -> bool:
    """Whether a line enters a box."""
    left, bottom, right, top = box
    (x0, y0), (x1, y1) = line
    if max(x0, x1) <= left or min(x0, x1) >= right or max(y0, y1) <= bottom or min(y0, y1) >= top:
        return False
    if left < line[0][0] < right and bottom < line[0][1] < top:
        return True
    corners = (left, bottom), (right, bottom), (right, top), (left, top)
    return any(_meet(line, (corners[i - 1], corners[i])) for i in range(4))


def _meet(a: Line, b: Line) -> bool:
    """Whether two lines cross."""

    def side(line: Line, p: Point) -> float:
        (x0, y0), (x1, y1) = line
        return (x1 - x0) * (p[1] - y0) - (y1 - y0) * (p[0] - x0)

    return side(a, b[0]) * side(a, b[1]) < 0 and side(b, a[0]) * side(b, a[1]) < 0
