"""How all figures look: colours that survive colour blindness, titles that carry n, unit and direction."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gate.runs.directory import one_move
from gate.runs.schema import Results
from gate.runs.schema import Row as Row

# Okabe and Ito's palette: distinct under every common colour blindness; markers differ as well
BLUE, ORANGE, VERMILION, GREEN, GREY, BAND = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#707070", "#EEF1F4"
DPI = 150
_PNG = {"compress_level": 3}  # a third of the time of zlib's default for a tenth more bytes
TALLEST = 13.3  # inches: 2000 pixels, more is scrolled past and not looked at
_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "legend.frameon": False,
    "svg.hashsalt": "gate",
    "svg.fonttype": "path",
    "image.interpolation": "nearest",
    "text.parse_math": False,  # names are names: a dollar in one is no formula
    "text.usetex": False,
}
_MARKERS = {  # kind -> (colour, marker, filled, what it is called)
    "technique": (BLUE, "o", True, "technique"),
    "control": (VERMILION, "s", False, "negative control"),
    "leak": (ORANGE, "^", False, "leak: sees the input's own pixels"),
}


@contextmanager
def styled() -> Iterator[None]:
    """The settings of all figures, for a while; the user's own stay as they are."""
    with rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Any:
    """A figure in inches that knows no display and no pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, stem: Path) -> list[Path]:
    """Write PNG and SVG; the same figure gives the same bytes."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with one_move(files[0]) as file:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs=_PNG)
    figure.set_layout_engine("none")  # it is laid out already; doing it again takes a tenth of the time
    with one_move(files[1]) as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return files


def kind(row: Row) -> str:
    """technique, control or leak."""
    return "control" if row.negative_control else "leak" if row.leak else "technique"


def marker(row: Row) -> dict[str, Any]:
    """Keywords of `errorbar` for a technique's point."""
    colour, shape, filled, _ = _MARKERS[kind(row)]
    return {
        "color": colour,
        "ecolor": colour,
        "marker": shape,
        "markersize": 6.5,
        "markerfacecolor": colour if filled else "white",
        "markeredgewidth": 1.4,
        "linestyle": "none",
        "elinewidth": 1.3,
    }


def marker_legend(rows: Sequence[Row]) -> list[Any]:
    """A legend entry for every kind of point that occurs, where there is more than one kind."""
    present = [k for k in _MARKERS if any(kind(r) == k for r in rows)]
    handles = []
    for name in present if present != ["technique"] else []:
        colour, shape, filled, label = _MARKERS[name]
        face = colour if filled else "white"
        handles.append(
            Line2D([], [], color=colour, marker=shape, markerfacecolor=face, linestyle="none", label=label)
        )
    return handles


def ranked(results: Results) -> list[Row]:
    """Rows with a score, best first."""
    return [r for r in results.ranking if finite(r.score)]


def finite(*values: float | None) -> bool:
    """Whether all of them are numbers."""
    return all(v is not None and math.isfinite(v) for v in values)


def basis(results: Results) -> str:
    """n, data, backbone and noise levels: the second line of a title."""
    timesteps = ", ".join(str(t) for t in results.axes.timestep)
    data, config = results.data, results.config
    return f"n = {data.n} samples of {data.name}, backbone {config['backbone']}, t = {timesteps}"


def level(results: Results) -> int:
    """The level of the intervals in per cent."""
    return round(100 * results.score.confidence)


def heading(figure: Any, lines: Sequence[str], size: float = 10.5) -> None:
    """The title of a whole figure from its left edge, broken where the figure ends."""
    figure.suptitle(_wrapped(figure, lines, size), fontsize=size, x=0.01, ha="left")


def footnote(figure: Any, sentences: Sequence[str], size: float = 7.5) -> None:
    """Small grey lines under everything, broken where the figure ends."""
    figure.supxlabel(_wrapped(figure, sentences, size), fontsize=size, color=GREY)


def _wrapped(figure: Any, sentences: Sequence[str], size: float) -> str:
    width = int(figure.get_figwidth() * 72 / (0.6 * size))  # characters of this size that fit
    return "\n".join(line for sentence in sentences for line in textwrap.wrap(sentence, width))


def pitch(rows: int) -> float:
    """Inches a row: less where there are many, so that a picture stays below 2000 pixels."""
    return min(0.27, (TALLEST - 2.2) / max(rows, 1))


def whiskers(value: float, low: float | None, high: float | None) -> list[list[float]] | None:
    """Distances down and up in per cent, as `errorbar` takes them; None without an interval."""
    if not finite(low, high):
        return None
    assert low is not None and high is not None
    return [[100 * max(0.0, value - low)], [100 * max(0.0, high - value)]]


def window(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    """Limits in per cent that show 0 and the gains well; what collapsed lies outside. lows, highs: shares."""
    top = max(100 * max(highs), 1.0)
    ordinary = [100 * v for v in lows if 100 * v > -2.5 * top]
    bottom = min([*ordinary, -0.15 * top])
    margin = 0.06 * (top - bottom)
    return bottom - margin, top + margin
