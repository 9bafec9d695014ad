"""What a reader of a ranking should be told beside it, in plain sentences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from gate.ranking.statistics import Interval, kendall, opposed

if TYPE_CHECKING:
    from gate.ranking.entry import Basis, Entry

DISAGREEMENT_TAU = 0.5  # orders with a Kendall tau below this are reported as disagreeing
SCALE_TOLERANCE = 0.05  # |log ratio| of feature norms beyond which a metric that follows them is suspect
MAX_NAMED = 4
OWN = "@own"  # ends the name of a metric that was taken from the technique's own clean features


def basis_notes(basis: Basis, uninformative: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    """What the score does not rest on: probes, metrics without error (`uninformative`), techniques without
    numbers."""
    notes = []
    if basis == "shift only":
        notes.append(
            "No probe counts in the score, so it is suppression alone: it sees drift from the input, "
            "not information added."
        )
    if uninformative:
        notes.append(
            f"Vanilla makes no error on {_quoted(uninformative)}: no improvement could show; left out of the score."
        )
    broken = [e.name for e in entries if math.isnan(e.score.value)]
    if broken:
        notes.append(
            f"NaN or infinity among the numbers of {_quoted(broken)}: no score, last in the ranking."
        )
    return notes


def scale_notes(metrics: Sequence[str], scale: Mapping[str, float]) -> list[str]:
    """Eq. 1-2 are not scale-invariant: a smaller feature has a smaller Laplacian, whatever it depicts.

    metrics: those that follow the scale. scale: technique -> RMS feature norm over vanilla's.
    """
    logs = {name: abs(math.log(ratio)) for name, ratio in scale.items() if ratio > 0}
    suspects = sorted((name for name in logs if logs[name] > SCALE_TOLERANCE), key=lambda name: -logs[name])
    if not suspects or not metrics:
        return []
    shown = listed([f"{name!r} ({scale[name]:.2f} x vanilla's feature norm)" for name in suspects], MAX_NAMED)
    return [
        f"{_quoted(metrics)} can be fooled by feature scale, and {shown} changed it: there, trust those that cannot."
    ]


def unbeaten_controls(
    entries: Sequence[Entry], controls: Mapping[str, str], show: Callable[[Entry], str]
) -> list[str]:
    """Clauses on controls that do not lose: not told to be below their technique, or better than vanilla.

    controls: each negative control and the technique that it must lose to, "" for vanilla. show: how to
    write a technique.
    """
    known = {e.name: e for e in entries}
    found = []
    for control in (e for e in entries if e.name in controls and math.isfinite(e.score.value)):
        of = known.get(controls[control.name])
        if of is not None and control.name in of.tied_with:
            found.append(f"{show(of)} cannot be told from its control {show(control)}")
        elif of is not None and control.score.value > of.score.value:
            found.append(f"the control {show(control)} beats {show(of)}")
        elif control.verdict == "better":
            found.append(f"the control {show(control)} is better than vanilla")
    return found


def control_notes(entries: Sequence[Entry], controls: Mapping[str, str]) -> list[str]:
    """The loudest note there is: a control that does not lose. controls: as `unbeaten_controls` takes them."""
    found = unbeaten_controls(entries, controls, _gain)
    if not found:
        return []
    return [
        f"A CONTROL DOES NOT LOSE: {listed(found, MAX_NAMED, '; ')}. Do not trust a gain that a control shares."
    ]


def denied_notes(entries: Sequence[Entry], controls: Collection[str]) -> list[str]:
    """Techniques that score above vanilla though their probe loses to it."""
    denied = [e for e in entries if e.verdict == "better" and e.loses_probe and e.name not in controls]
    shown = [
        f"{e.name!r} ({percent(e.score.value)} %, probe {percent(e.mean_error_removed.value)} %)"
        for e in denied
        if e.mean_error_removed
    ]
    return (
        [f"{listed(shown, MAX_NAMED)}: better by shift, worse by the probe, so no winner."] if shown else []
    )


def silent_notes(probes: Sequence[str]) -> list[str]:
    """Probes that read nothing from anybody's features."""
    if not probes:
        return []
    verb = "reads" if len(probes) == 1 else "read"
    return [
        f"{_quoted(probes)} {verb} no more than chance from any features (one image a class, or too few): left out of "
        "the score."
    ]


def contradictions(entries: Sequence[Entry], metrics: Sequence[str]) -> list[str]:
    """Techniques whose own reference and vanilla's say the opposite of them, beyond chance. metrics: of the score."""
    found = []
    for entry in entries:
        for name in (m for m in metrics if m.endswith(OWN)):
            own, other = (entry.suppression.get(n) for n in (name, name.removesuffix(OWN)))
            if own and other and min(own.high, other.high) < 0 < max(own.low, other.low):
                size = min(abs(own.value), abs(other.value))
                both = f"{name} {percent(own.value)} %, {name.removesuffix(OWN)} {percent(other.value)} %"
                text = f"{entry.name!r} ({both})"
                found.append((size, entry.name, text))
    widest: dict[str, str] = {}
    for _, name, text in sorted(found, key=lambda item: -item[0]):
        widest.setdefault(name, text)
    if not widest:
        return []
    return [
        f"Own reference (@own) and vanilla's contradict each other on {listed([*widest.values()], MAX_NAMED)}: "
        "trust neither."
    ]


def disagreements(entries: Sequence[Entry], scored: Sequence[str]) -> list[str]:
    """The two metrics or probes of the score that order the techniques most differently, and how many more pairs do."""
    columns: dict[str, dict[str, Interval]] = {}
    for entry in entries:
        for name, interval in [*entry.suppression.items(), *entry.probes.items()]:
            if name in scored and math.isfinite(interval.value):
                columns.setdefault(name, {})[entry.name] = interval
    found: list[tuple[float, float, str]] = []
    for a, b in itertools.combinations(columns, 2):
        common = [name for name in columns[a] if name in columns[b]]
        tau = kendall([columns[a][t].value for t in common], [columns[b][t].value for t in common])
        gap, first, second = opposed(columns[a], columns[b], common)
        orders = f" (Kendall tau of the two orders {tau:.2f})" if math.isfinite(tau) else ""
        if gap > 0:
            text = f"{a!r} puts {first!r} above {second!r} and {b!r} the reverse, by intervals that do not overlap"
            found.append((-gap, tau, text + orders))
        elif tau < DISAGREEMENT_TAU:
            found.append((0.0, tau, f"{a!r} and {b!r} order the techniques differently{orders}"))
    if not found:
        return []
    found.sort(key=lambda item: (item[0] == 0, item[0], item[1]))
    more = len(found) - 1
    rest = (
        f"; {more} more pair{'' if more == 1 else 's'} of the score disagree{'s' if more == 1 else ''} less"
        if more
        else ""
    )
    return [f"{found[0][2]}{rest}."]


def _gain(entry: Entry) -> str:
    return f"{entry.name} ({percent(entry.score.value)} %)"


def percent(share: float) -> str:
    """`+23.1`, and never a minus zero."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def listed(texts: Sequence[str], most: int, between: str = ", ") -> str:
    """The first `most` of the texts, and how many more there are."""
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return between.join(texts[:most]) + rest


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
