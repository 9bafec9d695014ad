"""The study's figures: agreement by number of images, and by technique what training said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gate.report.figures import look

SHOWN = (
    ("pixel-brier", look.BLUE, "o"),
    ("brier", look.GREEN, "s"),
    ("score", look.VERMILION, "^"),
    ("eps", look.ORANGE, "D"),
    ("laplacian", look.GREY, "v"),
    ("other domains", "black", ""),
)


def draw_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Every figure that the results hold enough for, as PNG and SVG."""
    with look.styled():
        files = look.save(agreement(results), folder / "agreement")
        return files + look.save(gains(results), folder / "gains")


def agreement(results: dict[str, Any]) -> Any:
    """Spearman's correlation with the truth over n, all techniques and without leaks."""
    figure = look.new_figure(9.0, 4.2)
    for axes, subset in zip(figure.subplots(1, 2, sharey=True), ("all", "without leaks"), strict=True):
        table = results["spearman"]["pooled"].get(subset, {})
        axes.set_title(f"{subset}, {results['cases']} cases" if table else f"{subset}: too few techniques")
        for name, colour, mark in SHOWN:
            if name not in table:
                continue
            sizes = sorted(int(n) for n in table[name])
            rows = [table[name][str(n)] for n in sizes]
            kept = [(n, r) for n, r in zip(sizes, rows, strict=True) if math.isfinite(r["value"] or math.nan)]
            if not kept:
                continue
            x = [n for n, _ in kept]
            y = [r["value"] for _, r in kept]
            axes.plot(x, y, color=colour, marker=mark or None, label=name, linestyle="-" if mark else "--")
            if mark:
                axes.fill_between(
                    x, [r["low"] for _, r in kept], [r["high"] for _, r in kept], color=colour, alpha=0.1
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks([int(n) for n in results["settings"]["sizes"]], results["settings"]["sizes"])
        axes.minorticks_off()
        axes.set_xlabel("images of the screen, n")
        axes.axhline(0, color="black", linewidth=0.6)
    figure.axes[0].set_ylabel("Spearman with trained heads (higher is better)")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8
    )
    return figure


def gains(results: dict[str, Any]) -> Any:
    """What training said of each technique: points over vanilla, a dot for each domain, at the first timestep."""
    tasks, t = results["tasks"], results["settings"]["timesteps"][0]
    names = sorted(results["techniques"], key=lambda name: mean_points(results, name, t))
    figure = look.new_figure(3.2 * len(tasks) + 1.6, 1.2 + 0.22 * len(names))
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True):
        for row in (r for r in results["truth"] if r["task"] == task and r["timestep"] == t):
            y = [names.index(name) for name in row["points"]]
            axes.plot(list(row["points"].values()), y, "o", markersize=3, alpha=0.6, label=row["domain"])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(task)
        axes.set_xlabel(f"points over vanilla at t = {t} (higher is better)", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    return figure


def mean_points(results: dict[str, Any], name: str, timestep: int) -> float:
    """Of a technique over domains and tasks at a timestep; 0 where it was not tried."""
    rows = [r["points"][name] for r in results["truth"] if r["timestep"] == timestep and name in r["points"]]
    return sum(rows) / len(rows) if rows else 0.0
