"""Two lines on top: what to use, how sure, at what cost, whether the control lost, and the next command."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gate.ranking.entry import Entry, Ranking, Weights
from gate.ranking.statistics import Interval
from gate.ranking.verdict import verdict


def entry(name: str, score: float, kind: Any = "none", *tied: str, p: float = 0.0123) -> Entry:
    return Entry(name, 1, Interval(score, score - 0.03, score + 0.04, 9), p, kind, tied, None, None)


def said(
    *entries: Entry, winners: tuple[str, ...] = (), controls: dict[str, str] | None = None
) -> tuple[str, str]:
    ranking = Ranking(entries, "shift only", Weights(), (), (), 9, 0.95, ())
    calls = {e.name: 1.0 + 7 * (e.name == "ensemble") for e in entries}
    return verdict(ranking, winners, controls=controls or {}, calls=calls, more="--samples 36", next="go on")


ENSEMBLE = entry("ensemble", 0.23, "better", p=0.0001)


def test_a_clear_winner() -> None:
    assert said(ENSEMBLE, entry("cfg", -0.2, "worse"), winners=("ensemble",), controls={"cfg": ""}) == (
        "Use ensemble: +23.0 % [20.0, 27.0], p < 0.001, 8 calls a pass.",
        "The control lost (cfg). Next: go on.",
    )


def test_its_own_control_goes_before_the_others() -> None:
    prompt = entry("prompt", 0.1, "better")
    others = entry("shuffled", -0.1), entry("cfg", -0.2)
    first, second = said(prompt, *others, winners=("prompt",), controls={"shuffled": "prompt", "cfg": ""})
    assert first == "Use prompt: +10.0 % [7.0, 14.0], p = 0.012, 1 call a pass."
    assert second == "Its control shuffled lost. Next: go on."


def test_a_control_that_does_not_lose_is_said_and_more_samples_separate() -> None:
    pair = entry("prompt", 0.025, "none", "shuffled"), entry("shuffled", 0.032, "none", "prompt")
    _, second = said(ENSEMBLE, *pair, winners=("ensemble",), controls={"shuffled": "prompt"})
    assert second == "prompt cannot be told from its control shuffled. To separate more: --samples 36."
    two = {"a": "", "b": ""}
    _, second = said(entry("a", 0.3, "better"), entry("b", 0.2, "better"), controls=two)
    assert second.startswith("The control a is better than vanilla and 1 more.")


def test_a_cheaper_winner_that_ties_is_named() -> None:
    tied = entry("ensemble", 0.23, "better", "cheap"), entry("cheap", 0.22, "better", "ensemble")
    first, second = said(*tied, winners=("ensemble", "cheap"))
    assert first.endswith("8 calls a pass. The same gain, cheaper: cheap (1) cannot be told from it.")
    assert second == "No negative control was screened. To separate more: --samples 36."
    apart = entry("ensemble", 0.23, "better"), entry("cheap", 0.1, "better")
    first, second = said(*apart, winners=("ensemble", "cheap"))
    assert "cheap" not in first and second.endswith("Next: go on.")


def test_nothing_beats_vanilla() -> None:
    first, second = said(entry("cfg", 0.02), entry("freeu", 0.01, p=0.5), controls={"cfg": ""})
    assert first == (
        "Keep vanilla: nothing beats it beyond chance. The best: freeu: +1.0 % [-2.0, 5.0], p = 0.5."
    )
    assert second.endswith("To separate more: --samples 36.")
    assert said(entry("broken", math.nan))[0] == "Keep vanilla: nothing beats it."


def test_what_scores_and_may_not_win_is_no_recommendation() -> None:
    first, _ = said(entry("leaky", 0.5, "better"), entry("freeu", 0.01))
    assert first.startswith("Keep vanilla: leaky: +50.0 % [47.0, 54.0]") and "probe gain" in first


def test_without_an_interval_none_is_made_up() -> None:
    lone = Entry("a", 1, Interval(0.1, math.nan, math.nan, 1), 1.0, "none", (), None, None)
    assert said(lone)[0].endswith("The best: a: +10.0 %, p = 1.")


def test_no_minus_zero() -> None:
    assert "The best: a: +0.0 % [" in said(entry("a", -0.0001))[0]


@pytest.mark.parametrize("controls", [{}, {"x": ""}])
def test_always_two_lines(controls: dict[str, str]) -> None:
    lines = said(ENSEMBLE, entry("x", -1.0, "worse"), winners=("ensemble",), controls=controls)
    assert len(lines) == 2 and all(line and "\n" not in line for line in lines)
