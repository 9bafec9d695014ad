"""What a reader of a ranking should be told beside it, in plain sentences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gate.ranking.statistics import Interval, kendall, opposed

if TYPE_CHECKING:
    from gate.ranking.entry import Basis, Entry

DISAGREEMENT_TAU = 0.5  # orders with a Kendall tau below this are reported as disagreeing
SCALE_TOLERANCE = 0.05  # |log ratio| of feature norms beyond which a metric that follows them is suspect
MAX_DISAGREEMENTS = 4
MAX_NAMED = 5


def basis_notes(basis: Basis, uninformative: Sequence[str], entries: Sequence[Entry]) -> list[str]:
    """What the score does not rest on: probes, metrics without error (`uninformative`), techniques without
    numbers."""
    notes = []
    if basis == "shift only":
        notes.append(
            "No probe counts in the score, so it is suppression alone: it sees drift from the input, "
            "not information added."
        )
    for name in uninformative:
        notes.append(
            f"Vanilla makes no error on {name!r}, so it cannot show an improvement and is left out of the score."
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
    shown = ", ".join(
        f"{name!r} ({scale[name]:.2f} x vanilla's feature norm)" for name in suspects[:MAX_NAMED]
    )
    rest = f" and {len(suspects) - MAX_NAMED} more" if len(suspects) > MAX_NAMED else ""
    return [
        f"{_quoted(metrics)} can be fooled by feature scale, and {shown}{rest} changed it: trust the scale-free "
        "metrics there."
    ]


def disagreements(entries: Sequence[Entry]) -> list[str]:
    """Pairs of metrics or probes that order the techniques differently, strongest first."""
    columns: dict[str, dict[str, Interval]] = {}
    for entry in entries:
        for name, interval in [*entry.suppression.items(), *entry.probes.items()]:
            if math.isfinite(interval.value):
                columns.setdefault(name, {})[entry.name] = interval
    found: list[tuple[float, float, str]] = []
    for a, b in itertools.combinations(columns, 2):
        common = [name for name in columns[a] if name in columns[b]]
        tau = kendall([columns[a][t].value for t in common], [columns[b][t].value for t in common])
        gap, first, second = opposed(columns[a], columns[b], common)
        if gap > 0:
            text = (
                f"{a!r} puts {first!r} above {second!r} and {b!r} the reverse, by intervals that do not "
                + "overlap"
                + (f" (Kendall tau of the two orders {tau:.2f})." if math.isfinite(tau) else ".")
            )
            found.append((-gap, tau, text))
        elif tau < DISAGREEMENT_TAU:
            found.append(
                (0.0, tau, f"{a!r} and {b!r} order the techniques differently (Kendall tau {tau:.2f}).")
            )
    found.sort(key=lambda item: (item[0] == 0, item[0], item[1]))
    notes = [text for _, _, text in found[:MAX_DISAGREEMENTS]]
    if len(found) > MAX_DISAGREEMENTS:
        notes.append(
            f"{len(found) - MAX_DISAGREEMENTS} more pairs of metrics or probes disagree, less strongly."
        )
    return notes


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
