"""What stands around the table of a ranking: title, legend, notes, what was skipped, the winners."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gate.runs.schema import Results, Row, Rule, Skipped

CONTROL, LEAK, DEGENERATE, TRUTH, SIGNIFICANT = "†", "‡", "§", "¶", "*"
MAX_NOTES = 5  # what a reader takes in; results.json has them all


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
    percent = level(results)
    lines = [
        "Figures are the share of vanilla's error that is gone, in %: higher is better, vanilla = 0, "
        f"[{percent} % interval over {results.data.n} samples, paired with vanilla]. "
        "calls, ms: denoiser calls and milliseconds of a pass, which is one image at one timestep and noise; vanilla "
        "calls once. a call: GATE % over calls.",
        _recipe(results),
    ]
    if any(m.endswith("@own") for m in results.score.metrics):
        lines.append(
            "@own: shift from the technique's own features of the clean image; without it, from vanilla's."
        )
    marks = []
    if any(r["verdict"] != "none" for r in rows):
        marks.append(f"{SIGNIFICANT} differs from vanilla (Holm-adjusted p < {1 - percent / 100:.2f})")
    if any(r["verdict"] == "none" and _excludes_zero(r) for r in rows):
        marks.append(
            f"an interval that excludes 0 without {SIGNIFICANT} is told from vanilla alone, but not among {len(rows)}"
        )
    if any(r["letters"] for r in rows):
        marks.append("ties: techniques that share a letter cannot be told apart, so their order is chance")
    elif any(r["tied_with"] for r in rows):
        marks.append("= tied: the order within a rank is chance")
    if any(r["negative_control"] for r in rows):
        marks.append(f"{CONTROL} negative control")
    if any(r["leak"] for r in rows):
        marks.append(f"{LEAK} leak: sees the input's own pixels, so shift flatters it")
    if any(r["degenerate"] for r in rows):
        marks.append(
            f"{DEGENERATE} degenerate: its features no longer carry the image, so its own reference does not count"
        )
    if any(r["truth"] for r in rows):
        marks.append(f"{TRUTH} is given labels or masks that probes judge by")
    return [*lines, "; ".join(marks) + "."] if marks else lines


def closing(results: Results) -> list[str]:
    """Notes, skipped techniques with their reasons, and the winners; a sentence each."""
    notes = results.notes
    more = len(notes) - MAX_NOTES + 1
    if len(notes) > MAX_NOTES:
        notes = [*notes[:-more], f"{more} more notes are in results.json."]
    lines = [f"Note: {note}" for note in notes] + skipped_lines(results.skipped)
    files = results.data.skipped
    if files:
        from gate.sample import reasons  # numpy, which a list does without

        lines.append(f"{_count(len(files), 'file')} left out: {reasons(files)}.")
    return [*lines, winners_line(results)]


def short(letters: str) -> str:
    """Letters of ties with runs of three or more as `c-f`. More than 52 groups, whose letters have numbers, stay."""
    if not letters.isalpha():
        return letters
    runs: list[str] = []
    for letter in letters:
        if runs and ord(letter) == ord(runs[-1][-1]) + 1:
            runs[-1] += letter
        else:
            runs.append(letter)
    return "".join(run if len(run) < 3 else f"{run[0]}-{run[-1]}" for run in runs)


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Techniques that were not ranked, why, and what to do: a line for each reason, with all that it holds for."""
    groups: dict[tuple[bool, str, str], list[Skipped]] = {}
    for one in skipped:
        groups.setdefault((one.failed, *_nameless(one)), []).append(one)
    lines = []
    for (failed, reason, fix), those in groups.items():
        if len(those) == 1:
            reason, fix = those[0].reason.strip(), those[0].fix.strip()
        stop = "" if reason.endswith((".", "!", "?")) else "."
        names = ", ".join(s.name for s in those)
        lines.append(f"{'Failed' if failed else 'Skipped'} {names}: {reason}{stop} {fix}".rstrip())
    return lines


def _nameless(skipped: Skipped) -> tuple[str, str]:
    """Reason and fix without the technique's name, or that of the part of a composition which refused."""
    reason, fix = skipped.reason.strip(), skipped.fix.strip()
    for name in (skipped.name, *skipped.name.split("+")):
        reason = reason.removeprefix(f"{name} ")
        fix = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "NAME", fix)
    return reason, fix


def winners_line(results: Results) -> str:
    """The winners, or that there is none."""
    if results.winners:
        return f"Winners: {', '.join(results.winners)}"
    return "Winners: none; no technique is better than vanilla beyond chance."


def _excludes_zero(row: Row) -> bool:
    return row.ci_low is not None and row.ci_high is not None and not row.ci_low <= 0 <= row.ci_high


def level(results: Results) -> int:
    """The level of the intervals, in per cent."""
    return round(100 * results.score.confidence)


def _recipe(results: Results) -> str:
    score = results.score
    metrics, probes = ", ".join(score.metrics), ", ".join(score.probes)
    if score.rule:
        return _prediction(score.rule, results)
    if not probes:
        why = "see the notes" if results.vanilla.probes else "no labels or masks"
        return f"GATE score = suppression, the mean over {metrics}; no probe counts ({why})."
    if not metrics:
        return f"GATE score = probe gain, the mean over {probes}."
    w = score.weights
    return (
        f"GATE score = {w['suppression']:g} x suppression (mean over {metrics}) "
        f"+ {w['probe']:g} x probe gain ({probes}: a small model that reads labels or masks off the features; "
        f"gate describe {score.probes[0]})."
    )


def _prediction(rule: Rule, results: Results) -> str:
    """What is predicted, from what, and what the interval speaks of."""
    made = " + ".join(f"{c:.2g} x {m}" for m, c in rule.coefficients.items())
    basis = {"masks": "masks", "labels": "labels", "": "images alone, without masks or labels"}[rule.name]
    elsewhere = "" if results.config["backbone"] == "tiny" else "; fitted on tiny, so elsewhere it is a guess"
    return (
        f"GATE score: the predicted share of a fully trained head's error that will be gone, from {basis} "
        f"({made}, n = {rule.n}{elsewhere}; docs/study.md). Interval, p and ties speak of these images; over tasks and "
        f"domains too, the truth strays further{_strays(results)}."
    )


def _strays(results: Results) -> str:
    """How far, of the first of the table."""
    first = results.ranking[0] if results.ranking else None
    if first is None or first.foretold_low is None or first.foretold_high is None:
        return ""
    return f" ({first.name}: {100 * first.foretold_low:.0f} to {100 * first.foretold_high:.0f} %; all in results.json)"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
