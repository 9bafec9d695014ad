"""docs/study.md, written from results.json alone."""

# long: one page, a function for each of its parts
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gate.runs.directory import one_move
from gate.study.foretold import BY_TIMESTEP
from gate.study.pictures import mean_points

DEMANDS = (  # of issue and docs: what the page is held against
    ("spearman", "all", "Spearman correlation, all techniques", ">= 0.9", 0.9, 1),
    ("spearman", "without leaks", "Spearman correlation without leaks", ">= 0.8", 0.8, 1),
    ("best_in_top3", "all", "True best among the screen's first three", ">= 0.95", 0.95, 1),
    ("top1_regret", "all", "Points lost by taking the screen's first", "<= 1", 1.0, -1),
)
OF_REPORTS = {"top1_regret": "regret"}  # what a rule's report calls a figure
FIGURES = (
    ("spearman", "Spearman", "+1 is best"),
    ("kendall", "Kendall", "+1 is best"),
    ("top1_regret", "regret of the first, points", "0 is best"),
    ("top3_recall", "recall of the true top 3", "1 is best"),
    ("best_in_top3", "true best in the top 3", "1 is best"),
    ("signs_right", "settled signs right", "1 is best"),
)


def write_page(results: dict[str, Any], file: Path) -> None:
    """In one move."""
    with one_move(file) as draft:
        draft.write_text(page_of(results), encoding="utf-8")


def page_of(results: dict[str, Any]) -> str:
    """The whole page, Markdown."""
    parts = [
        _head(results),
        _demands(results),
        _quantities(results, "all"),
        _quantities(results, "without leaks"),
        _by_size(results),
        _by_task(results),
        _rules(results),
        _unseen(results),
        _costs(results),
        _truths(results),
    ]
    return "\n".join(part for part in parts if part)


def _head(results: dict[str, Any]) -> str:
    s, more = results["settings"], results["unseen"]
    done, of = cells_of(results)
    unfinished = (
        "" if done >= of else f"\n**Unfinished: {done} of {of} cells are computed; figures are of these.**\n"
    )
    sizes = ", ".join(map(str, s["sizes"]))
    return f"""# Does a minute foretell what training would say?

Written by `gate study` from `study/results.json`; nothing here is typed by hand. Make it anew:

```
gate study --output study-run --workers 2 --page docs
```
{unfinished}
{len(results["techniques"])} techniques x {len(results["tasks"])} tasks x {len(results["domains"])} domains
({", ".join(results["domains"])}), timesteps {", ".join(map(str, results["timesteps"]))}: {results["places"]} places,
{results["cases"]} cases (a task at a place). {_further(more) if more else ""}The backbone is `{s["backbone"]}`.

- Truth: heads trained in full on {s["train"]} images and judged on {s["test"]} others (to match, at most
  {s["pairs"]} pairs of each), {s["head_seeds"]} seeds a task, mean of the seeds.
- Cheap quantities: from {s["screening"]} further images, n = {sizes}, up to {s["draws"]} disjoint draws each,
  one noise.
- Domains that differ by captions alone share images, and are left out together. Vanilla is 0 by definition and has no
  place in an order.
- A value is followed by its 95 % interval, from resampling techniques and families of domains at once.
"""


def _further(more: dict[str, Any]) -> str:
    times = ", ".join(map(str, more["timesteps"]))
    return f"At t = {times}, of which no rule has seen anything, {more['cases']} cases more. "


def cells_of(results: dict[str, Any]) -> tuple[int, int]:
    """How many cells there are, and how many there would be in the whole study."""
    parts = [results["cells"], *([results["unseen"]["cells"]] if results["unseen"] else [])]
    return sum(part["done"] for part in parts), sum(part["of"] for part in parts)


def _demands(results: dict[str, Any]) -> str:
    n = str(results["n"])
    lines = [
        f"## What was asked, at n = {n}",
        "",
        "Of each rule on tasks and domains that it was not fitted on, and of the best single quantity, which is "
        "flattered by being chosen here. **Bold** reaches what was asked.",
        "",
        *_asked(results),
    ]
    return "\n".join([*lines, "", *_ceiling(results)])


def _asked(results: dict[str, Any]) -> list[str]:
    n = str(results["n"])
    lines = [
        "| " + " | ".join(["figure", "asked", *_ruled(results), "best single quantity"]) + " |",
        "|---|---|" + "---|" * (len(_ruled(results)) + 1),
    ]
    for figure, subset, words, asked, bound, direction in DEMANDS:
        table = results[figure]["pooled"].get(subset, {})
        known = {
            q: row[n]
            for q, row in table.items()
            if q not in ("random", "other domains", "other tasks") and math.isfinite(_number(row[n]["value"]))
        }
        if not known:
            continue
        best = max(known, key=lambda q: direction * known[q]["value"])
        key = "without_leaks" if subset != "all" else OF_REPORTS.get(figure, figure)
        held = [_judged(report[key], bound, direction) for report in _ruled(results).values()]
        single = f"{_judged(known[best], bound, direction)} {best}"
        lines.append(f"| {words} | {asked} | " + " | ".join([*held, single]) + " |")
    held = [_within(report["coverage"]) for report in _ruled(results).values()]
    lines.append(
        "| Prediction intervals of 95 % that hold the truth | 0.90-0.99 | " + " | ".join([*held, "-"]) + " |"
    )
    ratio = _judged(results["cost_ratio"]["pooled"][n], 0.02, -1, digits=3)
    lines.append(
        f"| Seconds of the screen over those of training | <= 0.02 | {ratio} |" + " |" * len(_ruled(results))
    )
    return lines


def _ceiling(results: dict[str, Any]) -> list[str]:
    """How far the truth's own noise lets anybody come."""
    by_subset = results["ceiling"].get("pooled", {})
    every, free = (by_subset.get(subset) for subset in ("all", "without leaks"))
    if every is None or free is None:
        return []
    return [
        "The truth itself, judged on one half of the test images and on the other, orders techniques with a "
        f"correlation of {told(every['halves'])} (without leaks {told(free['halves'])}): those that do nothing are "
        "ordered by chance. So a predictor that knew the true order would reach about "
        f"{told(every['most'])} (without leaks {told(free['most'])}), and less with heads trained anew, for the same "
        "heads judged both halves.",
        "",
    ]


def _ruled(results: dict[str, Any]) -> dict[str, Any]:
    return {name: report for name, report in results["rules"].items() if name.startswith("rule:")}


def _judged(row: dict[str, Any], bound: float, direction: int, digits: int = 2) -> str:
    words = told(row, digits)
    return f"**{words}**" if direction * _number(row["value"]) >= direction * bound else words


def _within(row: dict[str, Any]) -> str:
    return f"**{told(row)}**" if 0.9 <= row["value"] <= 0.99 else told(row)


def _quantities(results: dict[str, Any], subset: str, level: str = "##", where: str = "") -> str:
    n = str(results["n"])
    table = results["spearman"]["pooled"].get(subset)
    if not table:
        return ""
    order = sorted(table, key=lambda q: -_number(table[q][n]["value"]))
    lines = [
        f"{level} Every quantity at n = {n}, {subset}{where}",
        "",
        "| quantity | "
        + " | ".join(f"{title} ({best})" for _, title, best in FIGURES)
        + " | order repeated |",
        "|---|" + "---|" * (len(FIGURES) + 1),
    ]
    for q in order:
        cells = [told(results[figure]["pooled"][subset][q][n]) for figure, _, _ in FIGURES]
        repeated = results["stability"].get(q, {}).get(n)
        lines.append(
            f"| {q} | " + " | ".join(cells) + f" | {'-' if repeated is None else f'{repeated:.2f}'} |"
        )
    return "\n".join(
        [*lines, "", "*Order repeated*: mean correlation between disjoint draws of n images.", ""]
    )


def _by_size(results: dict[str, Any]) -> str:
    sizes = [str(n) for n in results["settings"]["sizes"]]
    table = results["spearman"]["pooled"]["all"]
    order = sorted(table, key=lambda q: -_number(table[q][str(results["n"])]["value"]))[:12]
    lines = [
        "## How many images",
        "",
        "Spearman correlation, all techniques, pooled; the twelve best quantities.",
        "",
        "![Agreement by number of images](study/agreement.png)",
        "",
        "| quantity | " + " | ".join(f"n = {n}" for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    lines += [f"| {q} | " + " | ".join(told(table[q][n]) for n in sizes) + " |" for q in order]
    return "\n".join([*lines, ""])


def _by_task(results: dict[str, Any]) -> str:
    n, tasks = str(results["n"]), results["tasks"]
    table = results["spearman"]
    order = sorted(table["pooled"]["all"], key=lambda q: -_number(table["pooled"]["all"][q][n]["value"]))[:12]
    lines = [
        f"## By task, n = {n}",
        "",
        "| quantity | " + " | ".join(tasks) + " |",
        "|---|" + "---|" * len(tasks),
    ]
    lines += [
        f"| {q} | " + " | ".join(told(table[task]["all"][q][n]) for task in tasks) + " |" for q in order
    ]
    return "\n".join([*lines, ""])


def _rules(results: dict[str, Any]) -> str:
    if not results["rules"]:
        return ""
    lines = [
        "## Rules, on tasks and domains that they were not fitted on",
        "",
        "A rule predicts the share of the trained head's error that a technique removes. All of them, and their "
        "prediction intervals (of 95 %), are made from the other tasks in the other domains. The formula is fitted on "
        "everything, and ships (`gate/ranking/rules.json`; + is of shares of vanilla's error).",
        "",
        "| rule | formula | coverage | Spearman | without leaks | regret | true best in top 3 | rmse of the share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results["rules"].items():
        cells = [r["coverage"], r["spearman"], r["without_leaks"], r["regret"], r["best_in_top3"], r["rmse"]]
        made = " + ".join(f"{c:.2g} {q}" for q, c in r["coefficients"].items())
        lines.append(f"| {name} | {made} | " + " | ".join(told(c) for c in cells) + " |")
    if len(results["timesteps"]) > 1:
        lines += ["", "The same of each timestep's cases by themselves, of the rules that ship:", ""]
        lines += _by_timestep(results)
    return "\n".join([*lines, "", *_by_task_covered(results)])


def _by_task_covered(results: dict[str, Any]) -> list[str]:
    """Pooled, intervals may hold what they say by holding too much on one task and too little on another."""
    tasks = results["tasks"]
    lines = [
        "Prediction intervals of 95 % that hold the truth, by task:",
        "",
        "| rule | " + " | ".join(tasks) + " |",
        "|---|" + "---|" * len(tasks),
    ]
    for name, r in _ruled(results).items():
        lines.append(f"| {name} | " + " | ".join(told(r["by_task"][task]) for task in tasks) + " |")
    return [*lines, ""]


def _by_timestep(results: dict[str, Any]) -> list[str]:
    lines = [
        "| rule | timestep | coverage | Spearman | without leaks | regret | true best in top 3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in _ruled(results).items():
        for t, row in r["by_timestep"].items():
            figures = " | ".join(told(row[key]) for key in BY_TIMESTEP)
            lines.append(f"| {name} | {t} | {figures} |")
    return lines


def _unseen(results: dict[str, Any]) -> str:
    """What is said of timesteps that no rule was fitted on."""
    more = results["unseen"]
    if not more:
        return ""
    new, known = (", ".join(map(str, part["timesteps"])) for part in (more, results))
    lines = [
        f"## Timesteps that no rule was fitted on, t = {new}",
        "",
        f"The rules as they ship, from t = {known}, with the intervals that ship, in {', '.join(more['domains'])}: "
        f"{more['places']} places, {more['cases']} cases. The rules were fitted on the same tasks and on these domains "
        "among others; the timesteps, and so all features and all heads, are new to them.",
        "",
        *_asked(more),
        "",
        *_ceiling(more),
        *_by_timestep(more),
        "",
        *_by_task_covered(more),
        *(_quantities(more, subset, "###", f", t = {new}") for subset in ("all", "without leaks")),
    ]
    return "\n".join(lines)


def _costs(results: dict[str, Any]) -> str:
    sizes = [str(n) for n in results["settings"]["sizes"]]
    lines = [
        "## What it costs",
        "",
        "Seconds of the screen (passes, reference, all quantities) over seconds of training (features and one head).",
        "The heads here take seconds, so the ratio is far from that of a training that takes hours.",
        "",
        "| task | " + " | ".join(f"n = {n}" for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for scope, row in results["cost_ratio"].items():
        lines.append(f"| {scope} | " + " | ".join(told(row[n], 3) for n in sizes) + " |")
    return "\n".join([*lines, ""])


def _truths(results: dict[str, Any]) -> str:
    """Of every timestep that has cases, in the study's order."""
    times = results["settings"]["timesteps"]
    known = [
        (part, t) for part in (results, results["unseen"]) if part for t in times if t in part["timesteps"]
    ]
    return "\n".join(_truth(part, t, pictured=t == known[0][1]) for part, t in known)


def _truth(results: dict[str, Any], t: int, *, pictured: bool) -> str:
    rows = [r for r in results["truth"] if r["timestep"] == t]
    names = sorted(results["techniques"], key=lambda name: -mean_points(results, name, t))
    lines = [
        f"## What training said, t = {t}",
        "",
        "Points over vanilla; * = the 95 % interval excludes 0.",
        "",
    ]
    lines += ["![Gains of techniques](study/gains.png)", ""] if pictured else []
    for task in results["tasks"]:
        chosen = [r for r in rows if r["task"] == task]
        lines += [
            f"### {task}",
            "",
            "| technique | " + " | ".join(f"{r['domain']} ({r['vanilla']:.1f})" for r in chosen) + " |",
            "|---|" + "---|" * len(chosen),
        ]
        for name in names:
            leak = " (leak)" if name in results["leaks"] else ""
            lines.append(f"| {name}{leak} | " + " | ".join(_points(r, name) for r in chosen) + " |")
        lines.append("")
    return "\n".join(lines)


def _points(row: dict[str, Any], name: str) -> str:
    if name not in row["points"]:
        return "-"
    return f"{row['points'][name]:+.1f}{'*' if row['settled'][name] else ''}"


def told(row: dict[str, Any], digits: int = 2) -> str:
    """A value and its interval."""
    if not math.isfinite(_number(row["value"])):
        return "-"
    numbers: Sequence[float] = [_number(row[k]) for k in ("value", "low", "high")]
    value, low, high = (f"{x:.{digits}f}" for x in numbers)
    return f"{value} [{low}, {high}]"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
