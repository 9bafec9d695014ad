"""`python -m tests.coverage`: do intervals hold the truth as often as they say, and are equals told apart?

Real features: draws of n scenes from a pool of many, each ranked as a run is, under the embedded model. Synthetic
errors: skewed ones whose truth is known. Prints the tables of docs/metrics.md. What was measured and drawn is kept in
--folder, so it goes on where it stopped. The first run measures the pool, some ten minutes and 3 GB: no part of the
suite.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from scipy import stats

from gate.sample import MIN_SAMPLES
from tests.coverage.draws import QUANTITIES, SKEWED, drawn, skewed, skewed_equals, truths
from tests.coverage.pool import EQUALS, TECHNIQUES, open_pool

ROOT = Path(__file__).parents[2]
SIZES = (8, 16, 32, 64, 128)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", description=__doc__)
    parser.add_argument("--draws", type=int, default=120, help="of each n")
    parser.add_argument("--scenes", type=int, default=2048, help="of the pool")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--synthetic", type=int, default=1000, help="draws of skewed errors of each n")
    parser.add_argument("--folder", type=Path, default=Path("coverage-pool"), help="where the pool is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if min(options.sizes) < MIN_SAMPLES:
        parser.error(f"a run has {MIN_SAMPLES} samples or more")

    print("| errors | " + " | ".join(f"n = {n}" for n in options.sizes) + " |")
    print("|---|" + "---|" * len(options.sizes))
    for kind in SKEWED:
        cells = [shown(skewed(kind, n, options.synthetic), options.synthetic) for n in options.sizes]
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    cells = [shown(skewed_equals(n, options.synthetic), options.synthetic) for n in options.sizes]
    print(f"| six skewed equals, some pair told apart | {' | '.join(cells)} |\n", flush=True)

    scenes, pool = open_pool(
        options.scenes, options.folder, lambda line: print(line, file=sys.stderr, flush=True)
    )
    found = {n: drawn(scenes, pool, n, options.draws, options.folder) for n in options.sizes}
    print("| real features | " + " | ".join(f"n = {n}" for n in options.sizes) + " |")
    print("|---|" + "---|" * len(options.sizes))
    for member in TECHNIQUES:
        for quantity in QUANTITIES:
            cells = []
            for n in options.sizes:
                # a draw of n from a pool of N strays less than one from all scenes there are, by sqrt(1 - n / N)
                far = 1 / math.sqrt(1 - n / options.scenes)
                truth = truths(pool, found[n], member, n).get(quantity)
                rows = [row[member[0]].get(quantity) for row in found[n]]
                if truth is None or rows[0] is None:
                    cells.append("-")
                    continue
                held = [low <= v + far * (truth - v) <= high for v, low, high in rows]
                cells.append(shown(sum(held), len(held)))
            print(f"| {member[0]}: {quantity} | {' | '.join(cells)} |")
    equals = {n: [row["equals"] for row in found[n]] for n in options.sizes}
    outside = {n: sum(row["excluding 0"] for row in rows) for n, rows in equals.items()}
    lines = {
        "some pair told apart": [shown(sum(r["split"] for r in rows), len(rows)) for rows in equals.values()],
        "some star": [shown(sum(r["starred"] > 0 for r in rows), len(rows)) for rows in equals.values()],
        "an interval without 0": [shown(outside[n], len(EQUALS) * len(equals[n])) for n in equals],
    }
    for name, cells in lines.items():
        print(f"| six equals: {name} | {' | '.join(cells)} |")
    return 0


def shown(hits: int, of: int) -> str:
    """`95 [91, 98]`: per cent, and the exact binomial interval (Clopper & Pearson 1934)."""
    interval = stats.binomtest(hits, of).proportion_ci(method="exact")
    return f"{100 * hits / of:.0f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


if __name__ == "__main__":
    raise SystemExit(main())
