"""Suppression against probe gain: what drifts less, what tells more, and what does both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gate.report.figures import look
from gate.report.figures.cost import NAMED, named
from gate.report.figures.labels import place_labels

if TYPE_CHECKING:
    from gate.runs.directory import Run


def draw(run: Run) -> Any:
    """A point per technique with both intervals; None where no probe was measured."""
    rows = [r for r in look.ranked(run.results) if look.finite(r["suppression"], r["probe_gain"])]
    if not rows:
        return None
    figure = look.new_figure(7.2, 6.0)
    axes = figure.add_subplot()
    limits = {k: look.window(*_bounds(rows, k)) for k in ("suppression", "probe_gain")}
    axes.set(xlim=limits["suppression"], ylim=limits["probe_gain"])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    labelled = named(run.results)
    shown, others, outside = [], [], []
    for row in rows:
        x, y = 100 * row["suppression"], 100 * row["probe_gain"]
        if x < limits["suppression"][0] or y < limits["probe_gain"][0]:
            outside.append(f"{row.name} ({x:+.0f}, {y:+.0f})")
            continue
        style = look.marker(row) | {"elinewidth": 0.8}
        bars = [look.whiskers(row[k], row[f"{k}_low"], row[f"{k}_high"]) for k in limits]
        axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], **style)
        if row.name in labelled:
            shown.append((x, y, row.name))
        else:
            others.append((x, y))
    axes.set_xlabel("suppression: content shift that is gone, %   (higher is better)")
    axes.set_ylabel("probe gain: probe error that is gone, %   (higher is better)")
    axes.set_title(
        f"Suppression and probe gain; vanilla is the origin; {look.level(run.results)} % intervals\n"
        f"{look.basis(run.results)}"
    )
    look.footnote(
        figure, [NAMED if others else "", f"Outside the axes: {', '.join(outside)}" if outside else ""]
    )
    handles = look.marker_legend(rows)
    if handles:
        axes.legend(handles=handles, loc="lower right", fontsize=8)
    place_labels(figure, axes, shown, others=others)
    return figure


def _bounds(rows: list[look.Row], key: str) -> tuple[list[float], list[float]]:
    lows = [r[f"{key}_low"] if look.finite(r[f"{key}_low"]) else r[key] for r in rows]
    highs = [r[f"{key}_high"] if look.finite(r[f"{key}_high"]) else r[key] for r in rows]
    return lows, highs
