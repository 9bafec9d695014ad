"""The ranking as text: for a terminal, Markdown, CSV. Reads results.json and nothing else."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gate.report.words import (
    CONTROL,
    DEGENERATE,
    LEAK,
    SIGNIFICANT,
    TRUTH,
    closing,
    legend,
    level,
    short,
    title,
)

if TYPE_CHECKING:
    from rich.table import Table

    from gate.runs.schema import Part, Results

    Row = Mapping[str, Any] | Part  # vanilla's zero line is made up here

VANILLA = "vanilla"
LETTERS = 6  # columns for the letters of ties; more go to further lines
WIDE = 118  # from here on, suppression and probe gain show their intervals too
CSV_COLUMNS = (
    "rank",
    "name",
    "score",
    "ci_low",
    "ci_high",
    "foretold_low",
    "foretold_high",
    "n",
    "p",
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
    "degenerate",
    "truth",
    "tied_with",
    "letters",
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
    """The rank; vanilla, which competes with nobody, has none. Runs without letters say `=` where it is shared."""
    if row["rank"] is None:
        return ""
    return f"{row['rank']}{'=' if row['tied_with'] and not row['letters'] else ''}"


def marked(row: Row) -> str:
    """The name with the marks of what it is: a control, a leak, degenerate, given the truth."""
    known = {"negative_control": CONTROL, "leak": LEAK, "degenerate": DEGENERATE, "truth": TRUTH}
    marks = "".join(mark for what, mark in known.items() if row[what])
    return f"{row['name']} {marks}".rstrip()


def ranking_table(results: Results, *, width: int) -> Table:
    """The ranking for a terminal of `width` columns; vanilla stands between what is above and below 0."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    probes = any(r["probe_gain"] is not None for r in results.ranking)
    gap = 1 if wide else 0  # beside the one space that the box has
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), show_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("technique", overflow="fold", min_width=16)
    table.add_column("GATE %", justify="right", no_wrap=True)
    table.add_column(f"{level(results)} % interval", justify="right", no_wrap=True)
    letters = any(r["letters"] for r in results.ranking)
    if letters:
        table.add_column("ties", max_width=LETTERS, overflow="fold")
    table.add_column("suppr." if not wide else "suppression %", justify="right", no_wrap=True)
    if probes:
        table.add_column("probe" if not wide else "probe gain %", justify="right", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    if wide:
        table.add_column("gain a call %", justify="right", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    for row, style in _with_vanilla(results):
        value, _, bounds = _score_cell(row).partition(" ")
        cells = [place(row), marked(row), value, bounds]
        if letters:
            cells.append(short(row["letters"]))
        cells.append(_part(row, "suppression", wide))
        if probes:
            cells.append(_part(row, "probe_gain", wide))
        cells += [_cost(row["cost"]["calls"]), *([_gain_a_call(row)] if wide else [])]
        cells.append(_cost(row["cost"]["ms_per_image"]))
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

    def say(text: str, style: str = "") -> None:
        for line in Text(text, style=style).wrap(console, console.width):
            line.rstrip()
            console.print(line)

    say(title(results), "bold")
    console.print()
    for text in results.verdict:
        say(text, "bold")
    if results.verdict:
        console.print()
    console.print(ranking_table(results, width=console.width))
    console.print()
    for text in legend(results):
        say(text, "dim")
    *rest, winners = closing(results)
    for text in rest:
        say(text)
    console.print()
    say(winners, "bold")


def ranking_markdown(results: Results) -> str:
    """The ranking as a Markdown table, with title, legend and closing lines."""
    rows = [
        (
            place(r),
            f"`{r['name']}`" + marked(r)[len(r["name"]) :],
            _score_cell(r),
            short(r["letters"]),
            _part(r, "suppression", True),
            _part(r, "probe_gain", True),
            _cost(r["cost"]["calls"]),
            _gain_a_call(r),
            _cost(r["cost"]["ms_per_image"]),
        )
        for r, _ in _with_vanilla(results)
    ]
    head = (
        "rank",
        "technique",
        "GATE score %",
        "ties",
        "suppression %",
        "probe gain %",
        "calls",
        "gain a call %",
        "ms per image",
    )
    parts = [title(results), *results.verdict, markdown(head, rows), *legend(results), *closing(results)]
    return "\n\n".join(parts)


def ranking_csv(results: Results) -> str:
    """The ranking as CSV: fractions, not per cent; an empty cell where there is no number."""
    rows = []
    for row, _ in _with_vanilla(results):
        plain = row if isinstance(row, Mapping) else row.model_dump()
        flat = {**plain, **plain["cost"], "tied_with": " ".join(plain["tied_with"])}
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
    empty = dict.fromkeys(CSV_COLUMNS)
    zero = {key: 0.0 for key in CSV_COLUMNS if key.startswith(("score", "ci_", "suppression", "probe_gain"))}
    vanilla = (
        empty
        | zero
        | {
            "name": VANILLA,
            "n": results.data.n,
            "cost": {"calls": 1.0, "ms_per_image": results.vanilla.ms_per_image, "fit_seconds": 0.0},
            "negative_control": False,
            "leak": "",
            "degenerate": "",
            "truth": [],
            "verdict": "none",
            "tied_with": [],
            "letters": "",
        }
    )
    if not results.score.probes:
        vanilla |= {key: None for key in CSV_COLUMNS if key.startswith("probe_gain")}
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


def _gain_a_call(row: Row) -> str:
    """The score over the denoiser's calls of a pass, in per cent: what each call brings."""
    score, calls = row["score"], row["cost"]["calls"]
    return percent(score / calls) if score is not None and calls else "-"


def _cost(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    digits = 0 if value == int(value) or value >= 100 else 1 if value >= 1 else 2
    return f"{value:.{digits}f}"
