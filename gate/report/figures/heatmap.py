"""Where a technique acts: suppression by technique, timestep and layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gate.report.figures import look

if TYPE_CHECKING:
    from gate.runs.directory import Run


def draw(run: Run) -> Any:
    """Rows are techniques in order of rank, columns layers within timesteps; None without shift arrays."""
    from matplotlib import colormaps

    rows = look.ranked(run.results)
    metrics = feature_metrics(run)
    if not rows or not metrics:
        return None
    axes_of = run.results.axes
    order = [axes_of.technique.index(r.name) for r in rows]
    cells = np.mean([suppression(run.arrays[f"shift/{m}"]) for m in metrics], axis=0)[order]  # (rows, t, l)
    layers, timesteps = axes_of.layer, axes_of.timestep
    table = 100 * cells.reshape(len(rows), -1)
    limit = colour_limit(table[np.isfinite(table)])
    width, columns = 2.9 + 0.55 * table.shape[1], table.shape[1]
    figure = look.new_figure(max(width, 6.8), max(1.9 + look.pitch(len(rows)) * len(rows), 3.4))
    axes = figure.add_subplot()
    colours = colormaps["RdBu"].with_extremes(bad="#D9D9D9")
    shown = axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
    if columns <= 24:
        _numbers(axes, table, limit)
    axes.set_yticks(range(len(rows)), [r.name for r in rows])
    turn = 90 if columns > 12 or max(map(len, layers)) > 6 else 0
    axes.set_xticks(range(columns), [*layers] * len(timesteps), rotation=turn, fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for i, t in enumerate(timesteps):
        if i:
            axes.axvline(i * len(layers) - 0.5, color="black", linewidth=1.2)
        middle = (i + 0.5) * len(layers) - 0.5
        above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"t = {t}", (middle, 1.0), (0, 4), **above)
    bar = figure.colorbar(shown, ax=axes, extend="both", fraction=0.05, pad=0.02)
    bar.set_label("suppression, %  (blue: better than vanilla)", fontsize=8)
    bar.outline.set_visible(False)
    look.heading(
        figure,
        [
            "Suppression by technique, timestep and layer (higher is better; vanilla = 0)",
            look.basis(run.results),
            f"mean of {', '.join(metrics)}",
        ],
    )
    return figure


def feature_metrics(run: Run) -> list[str]:
    """The metrics of the score that see layers; where the score has none, all that do."""
    measured = [key.removeprefix("shift/") for key in run.arrays if key.startswith("shift/")]
    return [m for m in run.results.score.metrics if m in measured] or sorted(measured)


def suppression(shift: NDArray[Any]) -> NDArray[np.float64]:
    """1 - shift_T / shift_vanilla per cell, seeds and samples summed: (k, t, s, l, n) -> (k, t, l)."""
    total = shift.astype(np.float64).sum(axis=(2, 4))
    with np.errstate(divide="ignore", invalid="ignore"):
        share: NDArray[np.float64] = 1 - total / total[0]
    share[~np.isfinite(share)] = np.nan
    return share


def colour_limit(values: NDArray[np.float64]) -> float:
    """Where the colours end, in %: past the best gain, so that one collapse does not bleach the rest."""
    if not values.size:
        return 1.0
    size = np.abs(values)
    gain = 1.25 * float(values.max())
    return max(min(float(np.quantile(size, 0.98)), gain), float(np.quantile(size, 0.75)), 1.0)


def _numbers(axes: Any, table: NDArray[np.float64], limit: float) -> None:
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            digits = 1 if abs(value) < 10 else 0
            shown = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus zero
            light = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(
                x,
                y,
                shown,
                ha="center",
                va="center",
                fontsize=7,
                color=light,
            )
