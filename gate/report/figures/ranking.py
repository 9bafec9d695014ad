"""The ranking with its intervals and the letters of ties; controls and leaks have their own marks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gate.report.figures import look
from gate.report.table import percent
from gate.report.words import short

if TYPE_CHECKING:
    from gate.runs.directory import Run


def draw(run: Run) -> Any:
    """A dot and an interval per technique, best on top."""
    rows = look.ranked(run.results)
    if not rows:
        return None
    width = 5.4 + 0.08 * max(len(r.name) for r in rows)
    figure = look.new_figure(max(7.6, width), 1.7 + look.pitch(len(rows)) * len(rows))
    axes = figure.add_subplot()
    for y in range(0, len(rows), 2):
        axes.axhspan(y - 0.5, y + 0.5, color=look.BAND, linewidth=0)
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
    letters = max(len(short(r.letters)) for r in rows)
    for y, row in enumerate(rows):
        for text, left_of in ((str(row.rank), 8 + 6 * letters), (short(row.letters), 4)):
            where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate(text, (0, y), (-left_of, 0), **where, ha="right", va="center", fontsize=8.5)
    axes.tick_params(axis="y", length=0, pad=24 + 6 * letters)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("GATE score: vanilla's error that is gone, %\n(higher is better; vanilla = 0)")
    look.heading(figure, [f"Ranking, {look.level(run.results)} % intervals", look.basis(run.results)])
    look.footnote(figure, ["; ".join(_footnote(rows, left))])
    handles = look.marker_legend(rows)
    if handles:
        axes.legend(handles=handles, loc="lower right", fontsize=8)
    return figure


def _bound(row: look.Row, key: str) -> float:
    return float(row[key] if look.finite(row[key]) else row["score"])


def _footnote(rows: list[look.Row], left: float) -> list[str]:
    parts = ["techniques that share a letter cannot be told apart"] if any(r.letters for r in rows) else []
    if any(r.verdict != "none" for r in rows):
        parts.append("* differs from vanilla (Holm)")
    if any(100 * r["score"] < left for r in rows):
        parts.append("< lies left of the axis")
    return parts
