"""Measured cells as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.device import sentence


def table(found: Mapping[str, Any]) -> str:
    """One row per measured row; ratios beneath, each with the range of its repeats."""
    if "stores" in found:
        return _stores(found)
    rates = "; ".join(
        f"{name}: {rate['mix'] * 1e3:.0f} GFLOP/s over the shapes that occur ({rate['covered']:.0%} of the FLOPs "
        f"measured), {rate['peak'] * 1e3:.0f} at best"
        for name, rate in found["rates"].items()
    )
    lines = [
        f"**{found['model']}**, {found['size']} px, {sentence(found['device'])}. Matmul rate: {rates}. "
        f"Copy: {found['bandwidth']:.1f} GB/s.",
        "",
        "| mode | set | grid K N S T | row | seconds | first call | images/s | share of the floor | error | bits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in found["cells"]:
        head = f"| {cell['mode']} | {cell['set']} "
        grid = " ".join(str(cell["grid"][k]) for k in ("prompts", "images", "seeds", "timesteps"))
        for row in cell["rows"]:
            error = row["difference"]
            compared = (
                f"{error['frobenius']:.1e} | {'same' if error['same'] else 'other'}"
                if error
                else "own noise | "
            )
            lines.append(
                f"{head}| {grid} | {row['name']} | {statistics.median(row['seconds']):.3g} | "
                f"{row['first_seconds']:.3g} | {row['images_per_second']:.3g} | {row['share']:.0%} | "
                f"{compared} |"
            )
    lines += ["", "| mode | set | ratio | median | range |", "|---|---|---|---|---|"]
    for cell in found["cells"]:
        lines += [
            f"| {cell['mode']} | {cell['set']} | {r['slow']} / {r['fast']} | {r['median']:.2f} | "
            f"{r['min']:.2f} ... {r['max']:.2f} |"
            for r in cell["ratios"]
        ]
    return "\n".join(lines) + "\n"


def _stores(found: Mapping[str, Any]) -> str:
    made = found["stores"]
    lines = [
        f"**{made['images']} files of 64 px to DIFT's features on the disk**, tiny, {sentence(found['device'])}.",
        "",
        "| row | images/s | seconds | error against the script |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['images_per_second']:.1f} | {statistics.median(row['seconds']):.3g} | "
        f"{row['difference']['frobenius']:.1e} |"
        for row in made["rows"]
    ]
    lines += ["", "| ratio | median | range |", "|---|---|---|"]
    lines += [
        f"| {r['slow']} / {r['fast']} | {r['median']:.2f} | {r['min']:.2f} ... {r['max']:.2f} |"
        for r in made["ratios"]
    ]
    return "\n".join(lines) + "\n"
