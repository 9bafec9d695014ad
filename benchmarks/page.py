"""python -m benchmarks.page: the figures of docs/performance.md, from the committed JSON."""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.demands import DEMANDS, Demand, KernelDemand
from benchmarks.device import sentence
from benchmarks.parts import table as parts_table
from benchmarks.results import FOLDER, read_all
from benchmarks.table import table

PAGE = Path(__file__).parents[1] / "docs/performance.md"
FULL = {"prompts": 8, "images": 50, "seeds": 2, "timesteps": 3}  # the screen that the demands are about
UNMEASURED = "unmeasured"
Found = Mapping[str, Any]


def page(text: str, results: Sequence[Found]) -> str:
    """The page with every block between <!-- begin: NAME --> and <!-- end: NAME --> made anew."""
    blocks = {
        "demands": demands(results),
        "cells": cells(results),
        "rates": rates(results),
        "parts": pieces(results),
    }

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in blocks:
            raise KeyError(f"The page asks for {name!r}; there are {', '.join(blocks)}.")
        return f"<!-- begin: {name} -->\n{blocks[name].strip()}\n<!-- end: {name} -->"

    return re.sub(r"<!-- begin: (\w+) -->\n.*?<!-- end: \1 -->", fill, text, flags=re.DOTALL)


def demands(results: Sequence[Found]) -> str:
    """Each demand beside what was measured for it, on whichever devices it was."""
    lines = [
        "| where | demand | measured: median [range of the repeats] | at a grid of | "
        "roofline there / at 8 x 50 x 2 x 3 | of the roofline | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for demand in DEMANDS:
        rows = (
            _kernel_rows(demand, results) if isinstance(demand, KernelDemand) else _cell_rows(demand, results)
        )
        for row in rows or [f"{UNMEASURED} | | | | {UNMEASURED}"]:
            lines.append(f"| {demand.where} | {demand.text} | {row} |")
    return "\n".join(lines)


def _cell_rows(demand: Demand, results: Sequence[Found]) -> list[str]:
    rows = []
    for found in results:
        if demand.gpu != ("gpu" in found["device"]) or found.get("model") != demand.model:
            continue
        if demand.fact == "parts":
            rows += _part_ratios(demand, found)
            continue
        for cell in found.get("cells", ()):
            if (cell["mode"], cell["set"]) != (demand.mode, demand.layers):
                continue
            if demand.fact == "share":
                rows += _shares(demand, found, cell)
                continue
            for ratio in cell["ratios"]:
                if (ratio["slow"], ratio["fast"]) == (demand.slow, demand.fast):
                    speed = _speed(found, cell, ratio)
                    grid, full = speed * counted(cell, cell["grid"]), speed * counted(cell, FULL)
                    screen = cell["mode"] == "screen"
                    limits = f"{grid:.2f} / {full:.2f}" if screen else f"{grid:.2f}"
                    rows.append(
                        f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] | {_size(found)}, "
                        f"{_grid(cell)} | {limits} | {ratio['median'] / grid:.0%} | "
                        f"{_holds(demand, ratio['median'], full if screen else grid)}"
                    )
    return rows


def _part_ratios(demand: Demand, found: Found) -> list[str]:
    rows = []
    for dtype, parts in found.get("parts", {}).items():
        if demand.slow in parts:
            turns = zip(parts[demand.slow]["seconds"], parts[demand.fast]["seconds"], strict=True)
            values = [slow / fast for slow, fast in turns]
            middle, where = statistics.median(values), f"{_size(found)}, {dtype}, batch {found['batch']}"
            spread = f"{middle:.2f} [{min(values):.2f}, {max(values):.2f}]"
            rows.append(f"{spread} | {where} | | | {_holds(demand, middle)}")
    return rows


def _speed(found: Found, cell: Found, ratio: Found) -> float:
    """How many times as fast the machine does the products of the fast row's dtype as those of the slow row's."""
    dtypes = {row["name"]: row["dtype"] for row in cell["rows"]}
    slow, fast = (found["rates"][dtypes[ratio[key]]]["mix"] for key in ("slow", "fast"))
    return float(fast / slow)


def _shares(demand: Demand, found: Found, cell: Found) -> list[str]:
    """Share of the measured matmul rate, of the rows that a demand is about."""
    return [
        f"{row['share']:.0%} | {_size(found)}, {_grid(cell)} | | | {_holds(demand, row['share'])}"
        for row in cell["rows"]
        if row["name"] == demand.fast
    ]


def _kernel_rows(demand: KernelDemand, results: Sequence[Found]) -> list[str]:
    rows = []
    for found in results:
        for row in found.get(demand.part, ()) if "gpu" in found["device"] else ():
            where = f"{found['device']['gpu']}, {row['dtype']}, {tuple(row['shape'])}"
            if demand.part == "epilogue":
                rows.append(
                    f"{row['share']:.0%} ({row['name']}) | {where} | | | {_holds(demand, row['share'])}"
                )
            for ratio in row.get("ratios", ()):
                if (ratio["slow"], ratio["fast"]) == (demand.slow, demand.fast):
                    spread = f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"
                    rows.append(f"{spread} | {where} | | | {_holds(demand, ratio['median'])}")
    return rows


def _holds(demand: Demand | KernelDemand, value: float, limit: float = math.inf) -> str:
    """limit: the roofline; what is demanded above it cannot be done here, unless the value is above it too."""
    if demand.least is None:
        return "yes" if value <= (demand.most or 0.0) else "**no**"
    if value >= demand.least:
        return "yes"
    return "**no**, nor can it: the roofline is lower" if value <= limit < demand.least else "**no**"


def counted(cell: Found, grid: Mapping[str, int]) -> float:
    """How many times the FLOPs of ours a naive loop makes, at a grid: what sharing and early exit alone can give."""
    flops = cell["gflop"]
    passes = grid["prompts"] * grid["seeds"] * grid["timesteps"]
    encode = 0.0 if cell["mode"] == "cached" else flops["encode"]
    return passes * (flops["encode"] + flops["forward"]) / (encode + passes * flops["cut"])


def _size(found: Found) -> str:
    return f"{found['model']} {found['size']} px"


def _grid(cell: Found) -> str:
    if cell["mode"] != "screen":
        return f"{cell['grid']['images']} images"
    return " x ".join(str(cell["grid"][k]) for k in FULL)


def rates(results: Sequence[Found]) -> str:
    """Matmul rates of each device at the sizes that occur."""
    lines = [
        "| device | model | dtype | GFLOP/s over the shapes that occur | at best | copy, GB/s |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        for name, rate in found.get("rates", {}).items():
            lines.append(
                f"| {sentence(found['device'])} | {_size(found)} | {name} | {rate['mix'] * 1e3:.0f} | "
                f"{rate['peak'] * 1e3:.0f} | {found['bandwidth']:.1f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else UNMEASURED


def pieces(results: Sequence[Found]) -> str:
    """Seconds of encoder, cut forward and whole forward beside those that their FLOPs would take."""
    rows = [parts_table(found) for found in results if "parts" in found]
    head = [
        "| model | dtype | part | GFLOP | seconds an image: median [range] | at the matmul rate | share |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) if rows else UNMEASURED


def cells(results: Sequence[Found]) -> str:
    """Every cell that was measured, with the command."""
    shown = [
        f"`{found['command']}`\n\n{table(found)}"
        for found in results
        if "cells" in found or "stores" in found
    ]
    return "\n".join(shown) or UNMEASURED


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the page is not what the JSON says")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=FOLDER)
    asked = parser.parse_args(given)
    before = asked.page.read_text(encoding="utf-8")
    after = page(before, read_all(asked.results))
    if asked.check:
        return 0 if after == before else 1
    asked.page.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
