"""The ranking as text: for a terminal, Markdown, CSV. Reads results.json and nothing else."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from gate.runs.schema import Part, Results, Skipped

    Row = Mapping[str, Any] | Part  # vanilla's zero line is made up here

CONTROL, LEAK, SIGNIFICANT = "†", "‡", "*"
WIDE = 118  # from here on, suppression and probe gain show their intervals too
CSV_COLUMNS = (
    "rank",
    "name",
    "score",
    "ci_low",
    "ci_high",
    "n",
    "p_holm",
    "verdict",
    "suppression",
    "suppression_low",
    "suppression_high",
    "probe_gain",
    "probe_gain_low",
    "probe_gain_high",
    "calls",
    "ms_per_image",
    "fit_seconds",
    "negative_control",
    "leak",
    "tied_with",
)


def percent(value: float | None, *, signed: bool = True) -> str:
    """A share as per cent, "+23.1", without decimals from 100 on; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    rounded = round(100 * value, 1 if abs(value) < 1 else None) + 0.0  # + 0.0: minus zero would print a sign
    digits = 1 if abs(value) < 1 else 0
    return f"{rounded:+.{digits}f}" if signed and rounded else f"{rounded:.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """`+23.1 [19.8, 26.0]`, in per cent."""
    bounds = [percent(b, signed=False) for b in (low, high)]
    return percent(value) if "-" in bounds else f"{percent(value)} [{bounds[0]}, {bounds[1]}]"


def place(row: Row) -> str:
    """The rank, with `=` where it is shared."""
    return f"{row['rank']}{'=' if row['tied_with'] else ''}"


def marked(row: Row) -> str:
    """The name with the marks of a negative control and of a leak."""
    marks = (CONTROL if row["negative_control"] else "") + (LEAK if row["leak"] else "")
    return f"{row['name']} {marks}".rstrip()


def title(results: Results) -> str:
    """What was ranked, on what, with how many samples."""
    config, data, rows = results.config, results.data, results.ranking
    count = f"{len(rows)} technique{'s' if len(rows) != 1 else ''}"
    timesteps = ", ".join(str(t) for t in results.axes.timestep)
    return (
        f"{count} on {config['backbone']}, n = {data.n} samples of {data.name}, "
        f"t = {timesteps}, {_count(len(results.seeds), 'noise seed')}"
    )


def legend(results: Results) -> list[str]:
    """How to read the table: unit, direction, interval, what the score is made of, the marks that occur."""
    rows = results.ranking
    level = _level(results)
    lines = [
        "Figures are the share of vanilla's error that is gone, in %: higher is better, vanilla = 0, "
        f"[{level} % interval over {results.data.n} samples, paired with vanilla]. "
        "Cost: denoiser calls and milliseconds per image, for one timestep and noise.",
        _recipe(results),
    ]
    marks = []
    if any(r["verdict"] != "none" for r in rows):
        marks.append(f"{SIGNIFICANT} differs from vanilla (Holm-adjusted p < {1 - level / 100:.2f})")
    if any(r["tied_with"] for r in rows):
        marks.append("= tied: the order within a rank is chance")
    if any(r["negative_control"] for r in rows):
        marks.append(f"{CONTROL} negative control")
    if any(r["leak"] for r in rows):
        marks.append(f"{LEAK} leak: sees the input's own pixels, so shift flatters it")
    return [*lines, "; ".join(marks) + "."] if marks else lines


def closing(results: Results) -> list[str]:
    """Notes, skipped techniques with their reasons, and the winners; a sentence each."""
    lines = [f"Note: {note}" for note in results.notes]
    lines += [skipped_line(s) for s in results.skipped]
    files = results.data.skipped
    if files:
        from gate.sample import reasons  # numpy, which a list does without

        lines.append(f"{_count(len(files), 'file')} left out: {reasons(files)}.")
    return [*lines, winners_line(results)]


def skipped_line(skipped: Skipped) -> str:
    """One technique that was not ranked, why, and what to do."""
    verb = "Failed" if skipped.failed else "Skipped"
    reason, fix = skipped.reason.strip(), skipped.fix.strip()
    stop = "" if reason.endswith((".", "!", "?")) else "."
    return f"{verb} {skipped.name}: {reason}{stop} {fix}".rstrip()


def winners_line(results: Results) -> str:
    """The winners, or that there is none."""
    if results.winners:
        return f"Winners: {', '.join(results.winners)}"
    return "Winners: none; no technique is better than vanilla beyond chance."


def ranking_table(results: Results, *, width: int) -> Table:
    """The ranking for a terminal of `width` columns; vanilla stands between what is above and below 0."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    probes = any(r["probe_gain"] is not None for r in results.ranking)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("technique", overflow="fold", min_width=16)
    table.add_column("GATE %", justify="right", no_wrap=True)
    table.add_column(f"{_level(results)} % interval", justify="right", no_wrap=True)
    table.add_column("suppr." if not wide else "suppression %", justify="right", no_wrap=True)
    if probes:
        table.add_column("probe" if not wide else "probe gain %", justify="right", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    for row, style in _with_vanilla(results):
        value, _, bounds = _score_cell(row).partition(" ")
        cells = [place(row) if row["rank"] else "", marked(row), value, bounds]
        cells.append(_part(row, "suppression", wide))
        if probes:
            cells.append(_part(row, "probe_gain", wide))
        cells += [_cost(row["cost"]["calls"]), _cost(row["cost"]["ms_per_image"])]
        table.add_row(*(Text(c) for c in cells), style=style)
    return table


def ranking_text(results: Results, *, width: int = 80) -> str:
    """Title, table, legend, notes, skipped and winners as plain text, at most `width` columns wide."""
    from rich.console import Console

    stream = io.StringIO()
    print_ranking(results, Console(file=stream, width=width, color_system=None, highlight=False))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def print_ranking(results: Results, console: Any) -> None:
    """The same on a rich console, with colours where it has them."""
    from rich.text import Text

    console.print(Text(title(results), style="bold"))
    console.print()
    console.print(ranking_table(results, width=console.width))
    console.print()
    lines = [(line, "dim") for line in legend(results)] + [(line, "") for line in closing(results)]
    for text, style in lines:
        if text.startswith("Winners: "):
            console.print()
            style = "bold"
        for line in Text(text, style=style).wrap(console, console.width):
            line.rstrip()
            console.print(line)


def ranking_markdown(results: Results) -> str:
    """The ranking as a Markdown table, with title, legend and closing lines."""
    rows = [
        (
            place(r),
            f"`{r['name']}`" + marked(r)[len(r["name"]) :],
            _score_cell(r),
            _part(r, "suppression", True),
            _part(r, "probe_gain", True),
            _cost(r["cost"]["calls"]),
            _cost(r["cost"]["ms_per_image"]),
        )
        for r in results.ranking
    ]
    head = ("rank", "technique", "GATE score %", "suppression %", "probe gain %", "calls", "ms per image")
    parts = [title(results), markdown(head, rows), *legend(results), *closing(results)]
    return "\n\n".join(parts)


def ranking_csv(results: Results) -> str:
    """The ranking as CSV: fractions, not per cent; an empty cell where there is no number."""
    rows = []
    for row in results.ranking:
        flat = {**row.model_dump(), **row.cost.model_dump(), "tied_with": " ".join(row.tied_with)}
        rows.append([flat[c] for c in CSV_COLUMNS])
    return comma_separated(CSV_COLUMNS, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([c.replace("|", "\\|") for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def comma_separated(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV with a header; None and NaN are empty cells."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow("" if _missing(c) else c for c in row)
    return stream.getvalue().rstrip("\n")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _with_vanilla(results: Results) -> list[tuple[Row, str]]:
    """Rows with their colours, and vanilla's zero line where it belongs."""
    colours = {"better": "green", "worse": "red", "none": ""}
    rows = [(r, "dim" if r["negative_control"] else colours[r["verdict"]]) for r in results.ranking]
    vanilla = {
        "rank": None,
        "name": "vanilla",
        "score": 0.0,
        "suppression": 0.0,
        "probe_gain": 0.0,
        "cost": {"calls": 1.0, "ms_per_image": results.vanilla.ms_per_image},
        "negative_control": False,
        "leak": "",
    }
    at = next((i for i, (r, _) in enumerate(rows) if not (r["score"] or math.nan) >= 0), len(rows))
    return [*rows[:at], (vanilla, "bold"), *rows[at:]]


def _score_cell(row: Row) -> str:
    if row["rank"] is None:
        return "0.0"
    star = SIGNIFICANT if row["verdict"] != "none" else ""
    value, space, bounds = interval(row["score"], row["ci_low"], row["ci_high"]).partition(" ")
    return f"{value}{star}{space}{bounds}"


def _part(row: Row, key: str, wide: bool) -> str:
    if not wide or row["rank"] is None:
        return percent(row[key])
    return interval(row[key], row[f"{key}_low"], row[f"{key}_high"])


def _cost(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    digits = 0 if value == int(value) or value >= 100 else 1 if value >= 1 else 2
    return f"{value:.{digits}f}"


def _level(results: Results) -> int:
    return round(100 * results.score.confidence)


def _recipe(results: Results) -> str:
    score = results.score
    metrics, probes = ", ".join(score.metrics), ", ".join(score.probes)
    if not probes:
        return f"GATE score = suppression, the mean over {metrics}; no probe counts (no labels or masks)."
    if not metrics:
        return f"GATE score = probe gain, the mean over {probes}."
    w = score.weights
    return (
        f"GATE score = {w['suppression']:g} x suppression (mean over {metrics}) "
        f"+ {w['probe']:g} x probe gain (mean over {probes})."
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
