"""Gain against cost: which technique is worth its denoiser calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gate.report.figures import look
from gate.report.figures.labels import place_labels

if TYPE_CHECKING:
    from gate.runs.directory import Run
    from gate.runs.schema import Results

NAMED = "Named are winners, controls and the front, as far as there is room; the ranking names all."


def draw(run: Run) -> Any:
    """GATE score over denoiser calls per image (log), with the techniques that nothing cheaper beats."""
    rows = [r for r in look.ranked(run.results) if look.finite(r["cost"]["calls"]) and r["cost"]["calls"] > 0]
    if not rows:
        return None
    figure = look.new_figure(7.6, 5.4)
    axes = figure.add_subplot()
    calls = [r["cost"]["calls"] for r in rows]
    low = [r["ci_low"] if look.finite(r["ci_low"]) else r["score"] for r in rows]
    high = [r["ci_high"] if look.finite(r["ci_high"]) else r["score"] for r in rows]
    bottom, top = look.window(low, high)
    axes.set_xscale("log")
    axes.set(xlim=(min(1.0, *calls) / 1.7, max(2.0, *calls) * 1.9), ylim=(bottom, top))
    axes.axhline(0, color="black", linewidth=0.8)
    labelled = named(run.results)
    shown, others, outside = [(1.0, 0.0, "vanilla")], [], []
    axes.plot(1, 0, marker="D", color="black", markersize=6, linestyle="none", zorder=3)
    for row in rows:
        x, y = row["cost"]["calls"], 100 * row["score"]
        if y < bottom:
            outside.append(f"{row.name} ({y:+.0f} % at {x:g})")
            continue
        style = look.marker(row) | {"elinewidth": 0.8}
        axes.errorbar(x, y, yerr=look.whiskers(row["score"], row["ci_low"], row["ci_high"]), **style)
        if row.name in labelled:
            shown.append((x, y, row.name))
        else:
            others.append((x, y))
    front = _front(axes, rows)
    ticks = sorted({1.0, *(c for c in (2, 4, 8, 16, 32, 64, 128) if min(calls) <= c <= max(calls))})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("denoiser calls per image, timestep and noise (log; lower is cheaper; vanilla = 1)")
    axes.set_ylabel("GATE score, %   (higher is better; vanilla = 0)")
    axes.set_title(f"Gain against cost, {look.level(run.results)} % intervals\n{look.basis(run.results)}")
    look.footnote(
        figure, [NAMED if others else "", f"Below the axis: {', '.join(outside)}" if outside else ""]
    )
    axes.legend(handles=[*look.marker_legend(rows), front], loc="lower right", fontsize=8)
    place_labels(figure, axes, shown, others=others)
    return figure


def named(results: Results) -> set[str]:
    """Who is labelled where all would cover each other: winners, controls, and the front of gain against cost."""
    rows = look.ranked(results)
    at = {_point(r): r.name for r in reversed(rows) if _competes(r)}  # of several on one spot, the first
    controls = {r.name for r in rows if r.negative_control}
    return {at[p] for p in pareto([*at])} | controls | set(results.winners)


def _competes(row: look.Row) -> bool:
    """Controls and leaks are no candidates for the front, nor is what does not differ from vanilla."""
    return look.kind(row) == "technique" and row.verdict == "better" and look.finite(row.cost.calls)


def _point(row: look.Row) -> tuple[float, float]:
    assert row.cost.calls is not None and row.score is not None
    return row.cost.calls, 100 * row.score


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gain) that no other beats in gain at the same or lower cost, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front


def _front(axes: Any, rows: Sequence[look.Row]) -> Any:
    """A step line from vanilla up."""
    front = pareto([(1.0, 0.0), *(_point(r) for r in rows if _competes(r))])
    x, y = [p[0] for p in front], [p[1] for p in front]
    (line,) = axes.plot(
        [*x, axes.get_xlim()[1]],
        [*y, y[-1]],
        drawstyle="steps-post",
        color=look.GREEN,
        linewidth=1.3,
        zorder=1,
        label="front: better than vanilla, no control, no leak",
    )
    return line
