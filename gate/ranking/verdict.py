"""What a ranking comes down to: what to use, how sure that is, whether the controls lost, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gate.ranking.entry import Entry, Ranking
from gate.ranking.notes import listed, percent, unbeaten_controls

MAX_NAMED = 3


def verdict(
    ranking: Ranking,
    winners: Sequence[str],
    *,
    controls: Mapping[str, str],
    calls: Mapping[str, float],
    more: str,
    next: str,
) -> tuple[str, str]:
    """Two sentences for the top: what to use, its gain, certainty and cost; then the controls and the next step.

    controls: each negative control and the technique that it must lose to, "" for vanilla. calls: of the denoiser, per
    image and pass, by technique. more: how to separate more. next: what to do where everything is told apart.
    """
    entries = {e.name: e for e in ranking.entries}
    best = entries[winners[0]] if winners else None
    rivals = [entries[name] for name in winners[1:] if best and name in best.tied_with]
    unbeaten = unbeaten_controls(ranking.entries, controls, lambda entry: entry.name)
    if unbeaten:
        told = listed(unbeaten, 1) + "."
        told = told[0].upper() + told[1:] if told.startswith("the ") else told
    else:
        told = _lost(best, [e.name for e in ranking.entries if e.name in controls], controls)
    step = f"To separate more: {more}." if unbeaten or rivals or best is None else f"Next: {next}."
    first = _choice(best, rivals, calls) if best else _nothing(ranking, controls)
    return first, f"{told} {step}"


def _choice(best: Entry, rivals: Sequence[Entry], calls: Mapping[str, float]) -> str:
    cost = calls[best.name]
    text = f"Use {_figure(best)}, {cost:g} call{'' if cost == 1 else 's'} a pass."
    if best.foretold:
        low, high = percent(best.foretold.low), percent(best.foretold.high)
        text += f" A trained head: between {low} and {high} %, by the study."
    cheapest = min(rivals, key=lambda e: calls[e.name], default=best)
    if calls[cheapest.name] < cost:
        text += f" The same gain, cheaper: {cheapest.name} ({calls[cheapest.name]:g}) cannot be told from it."
    return text


def _nothing(ranking: Ranking, controls: Mapping[str, str]) -> str:
    """Nothing wins; the best that is no control may still stand above vanilla: a leak, or one that its probe denies."""
    others = [e for e in ranking.entries if e.name not in controls and math.isfinite(e.score.value)]
    best = max(others, key=lambda e: e.score.value, default=None)
    if best is None:
        return "Keep vanilla: nothing beats it."
    if best.verdict == "better":
        return f"Keep vanilla: {_figure(best)} is no winner, its probe gain does not bear it out."
    return f"Keep vanilla: nothing beats it beyond chance. The best: {_figure(best)}."


def _lost(best: Entry | None, present: Sequence[str], controls: Mapping[str, str]) -> str:
    if not present:
        return "No negative control was screened."
    own = [name for name in present if best is not None and controls[name] == best.name]
    if own:
        return f"Its control {own[0]} lost."
    return f"The control{'' if len(present) == 1 else 's'} lost ({listed(present, MAX_NAMED)})."


def _figure(entry: Entry) -> str:
    """`prompt: +2.5 % [1.9, 3.0], p = 0.004`."""
    score, p = entry.score, entry.p_holm
    bounds = (
        f" [{100 * score.low:.1f}, {100 * score.high:.1f}]" if math.isfinite(score.low + score.high) else ""
    )
    sure = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"{entry.name}: {percent(score.value)} %{bounds}, {sure}"
