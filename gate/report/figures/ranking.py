"""The ranking with its intervals: ties share a band, controls and leaks have their own marks."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from gate.report.figures import look
from gate.report.table import percent

if TYPE_CHECKING:
    from gate.runs.directory import Run


def draw(run: Run) -> Any:
    """A dot and an interval per technique, best on top."""
    rows = look.ranked(run.results)
    if not rows:
        return None
    figure = look.new_figure(7.6, 1.7 + 0.27 * len(rows))
    axes = figure.add_subplot()
    _bands(axes, rows)
    left, right = look.window([_bound(r, "ci_low") for r in rows], [_bound(r, "ci_high") for r in rows])
    for y, row in enumerate(rows):
        value = 100 * row["score"]
        if value < left:
            axes.plot(left, y, marker="<", color=look.marker(row)["color"], clip_on=False)
        else:
            spread = look.whiskers(row["score"], row["ci_low"], row["ci_high"])
            axes.errorbar(value, y, xerr=spread, **look.marker(row))
        star = "*" if row.verdict != "none" else ""
        label = f"{percent(row['score'])}{star}"
        axes.annotate(label, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    axes.axvline(0, color="black", linewidth=1)
    axes.set(xlim=(left, right), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [r.name for r in rows])
    for y, row in enumerate(rows):
        place = f"{row.rank}{'=' if row.tied_with else ''}"
        axes.annotate(place, (0, y), (-26, 0), ("axes fraction", "data"), "offset points", va="center")
    axes.tick_params(axis="y", length=0, pad=30)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("GATE score: vanilla's error that is gone, %   (higher is better; vanilla = 0)")
    axes.set_title(f"Ranking, {look.level(run.results)} % intervals\n{look.basis(run.results)}")
    figure.supxlabel(_footnote(rows, left), fontsize=7.5, color=look.GREY)
    handles = look.marker_legend(rows)
    if handles:
        axes.legend(handles=handles, loc="lower right", fontsize=8)
    return figure


def _bound(row: look.Row, key: str) -> float:
    return float(row[key] if look.finite(row[key]) else row["score"])


def _bands(axes: Any, rows: list[look.Row]) -> None:
    """Shade every other rank, so that techniques which share one are seen as one."""
    for i, (_, group) in enumerate(groupby(enumerate(rows), key=lambda pair: pair[1].rank)):
        places = [y for y, _ in group]
        if i % 2 == 0:
            axes.axhspan(places[0] - 0.5, places[-1] + 0.5, color=look.BAND, linewidth=0)


def _footnote(rows: list[look.Row], left: float) -> str:
    parts = ["A band is a rank; = marks a tie"]
    if any(r.verdict != "none" for r in rows):
        parts.append("* differs from vanilla (Holm)")
    if any(100 * r["score"] < left for r in rows):
        parts.append("< lies left of the axis")
    return "; ".join(parts)
