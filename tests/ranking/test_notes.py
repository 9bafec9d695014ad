"""What is said beside a ranking, and what not, at the very thresholds."""

from __future__ import annotations

import math

import pytest

from gate.ranking.entry import Entry
from gate.ranking.notes import (
    basis_notes,
    contradictions,
    control_notes,
    denied_notes,
    disagreements,
    scale_notes,
    silent_notes,
)
from gate.ranking.statistics import Interval, kendall, opposed


def near(value: float, width: float = 1.0) -> Interval:
    return Interval(value, value - width, value + width, 9)


def entry(name: str, score: float = 0.0, **metrics: Interval) -> Entry:
    return Entry(name, 1, near(score), 1.0, "none", (), None, None, metrics, {})


def entries(**metrics: list[float]) -> list[Entry]:
    """Techniques t0, t1, ... whose intervals all overlap."""
    rows = zip(*metrics.values(), strict=True)
    return [entry(f"t{i}", **dict(zip(metrics, map(near, row), strict=True))) for i, row in enumerate(rows)]


def test_kendall_by_hand_and_where_it_says_nothing() -> None:
    assert kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert math.isnan(kendall([1, 2, 3], [1, 2, 3]))
    assert math.isnan(kendall([1, 1, 1, 1], [1, 2, 3, 4])) and math.isnan(kendall([1, 2, 3, 4], [1, 1, 1, 1]))
    assert math.isfinite(kendall([1, 1, 1, 2], [1, 2, 3, 4]))
    assert math.isfinite(kendall([1, 2, 3, 4], [1, 1, 1, 2]))


def test_opposed_takes_the_widest_of_the_smaller_gaps() -> None:
    a = {"x": Interval(5, 4, 6, 9), "y": Interval(1, 0, 2, 9), "z": Interval(9, 7, 11, 9)}
    b = {"x": Interval(1, 0, 2, 9), "y": Interval(7, 5, 9, 9), "z": Interval(-4, -5, -3, 9)}
    # x over y by 4 - 2 = 2 in a, under it by 5 - 2 = 3 in b; z over y by 7 - 2 = 5, under it by 5 + 3 = 8;
    # z over x by 7 - 6 = 1, under it by 0 + 3 = 3.
    assert opposed(a, b, ["x", "y", "z"]) == (5, "z", "y")
    assert opposed(a, b, ["y", "x"]) == (2, "x", "y")
    assert opposed(b, a, ["y", "x"]) == (2, "y", "x")
    assert opposed(a, a, ["x", "y"]) == (0, "", "")
    touching = {"x": Interval(3, 2, 4, 9), "y": Interval(1, 0, 2, 9)}  # an end in common is no gap
    assert opposed(touching, b, ["x", "y"]) == (0, "", "")


def test_the_score_says_what_it_does_not_rest_on() -> None:
    assert basis_notes("shift and probes", [], [entry("a")]) == basis_notes("probes only", [], []) == []
    alone, spotless, broken = basis_notes("shift only", ["cka"], [entry("a"), entry("b", math.nan)])
    assert "suppression alone" in alone and "no error on 'cka'" in spotless and "of 'b':" in broken


def test_scale_is_told_beyond_five_percent_either_way_largest_first() -> None:
    scale = {"small": 0.5, "large": 3.0, "up": 1.06, "down": 0.94, "within": 1.05, "under": 0.96, "dead": 0.0}
    (note,) = scale_notes(["laplacian", "eps"], scale)
    assert note.startswith("'laplacian', 'eps' can be fooled")
    shown = "'large' (3.00 x vanilla's feature norm), 'small' (0.50 x vanilla's feature norm), 'down' (0.94"
    assert shown in note and "'up' (1.06" in note
    assert not any(name in note for name in ("within", "under", "dead", "more"))
    assert scale_notes([], scale) == scale_notes(["eps"], {"a": 1.0}) == []
    many = {f"t{i}": 2.0 + i for i in range(6)}
    (note,) = scale_notes(["eps"], many)
    assert "'t5'" in note and "'t2'" in note and "'t1'" not in note and " and 2 more changed it" in note
    (note,) = scale_notes(["eps"], {name: many[name] for name in ("t0", "t1", "t2", "t3")})
    assert "'t0'" in note and "more" not in note


AB = "'a' and 'b' order the techniques differently (Kendall tau of the two orders 0.33)."


def test_orders_that_agree_by_more_than_half_are_not_told() -> None:
    # of six pairs one apart: tau 2/3; two apart: tau 1/3
    assert disagreements(entries(a=[1, 2, 3, 4], b=[1, 2, 4, 3]), "ab") == []
    assert disagreements(entries(a=[1, 2, 3, 4], b=[2, 1, 4, 3]), "ab") == [AB]


def test_what_does_not_score_is_not_spoken_of() -> None:
    told = entries(a=[1, 2, 3, 4], b=[2, 1, 4, 3], c=[4, 3, 2, 1])
    assert disagreements(told, "ab") == [AB] and disagreements(told, "a") == []


def test_without_a_number_a_technique_is_left_out_of_the_comparison_of_orders() -> None:
    told = entries(a=[1, 2, 3, 4, math.nan], b=[2, 1, 4, 3, 0])
    assert disagreements(told, "ab") == [AB]


def test_a_gap_between_intervals_outranks_a_low_tau_and_the_widest_is_told() -> None:
    order = [1.0, 2.0, 3.0, 4.0]
    clear = [
        entry("t0", a=near(0, 0.1), b=near(0.5, 0.1), c=near(5, 0.1)),
        entry("t1", a=near(1, 0.1), b=near(0, 0.1), c=near(0, 0.1)),
    ]
    # a and b: the smaller gap is 0.5 - 0.2 = 0.3; a and c: 1 - 0.2 = 0.8; b and c agree
    (told,) = disagreements(clear, "abc")
    assert told == (
        "'a' puts 't1' above 't0' and 'c' the reverse, by intervals that do not overlap; "
        "1 more pair of the score disagrees less."
    )
    (told,) = disagreements(
        [
            entry(f"t{i}", a=near(a), b=near(b), c=Interval(c, c - 0.1, c + 0.1, 9), d=Interval(d, d, d, 9))
            for i, (a, b, c, d) in enumerate(zip(order, [2, 1, 4, 3], [1, 2, 3, 4], [4, 3, 2, 1]))
        ],
        "abcd",
    )
    assert told.startswith("'c' puts 't3' above 't0' and 'd' the reverse") and "tau of the two" in told
    assert told.endswith("; 4 more pairs of the score disagree less.")


# controls


def ranked(
    name: str, score: float, verdict: str = "none", *tied: str, probe: Interval | None = None
) -> Entry:
    return Entry(name, 1, Interval(score, score - 0.01, score + 0.01, 9), 0.001, verdict, tied, None, probe)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "shuffled", "told"),
    [
        (
            ranked("prompt", 0.025, "better", "shuffled"),
            ranked("shuffled", 0.032, "better", "prompt"),
            "prompt (+2.5 %) cannot be told from its control shuffled (+3.2 %)",
        ),
        (
            ranked("prompt", 0.025),
            ranked("shuffled", 0.1, "better"),
            "the control shuffled (+10.0 %) beats prompt (+2.5 %)",
        ),
        (
            ranked("prompt", 0.2, "better"),
            ranked("shuffled", 0.1, "better"),
            "the control shuffled (+10.0 %) is better than vanilla",
        ),
        (ranked("prompt", 0.2, "better"), ranked("shuffled", 0.001), ""),
        (ranked("prompt", 0.2, "better"), ranked("shuffled", math.nan), ""),
    ],
)
def test_a_control_that_does_not_lose_is_told(prompt: Entry, shuffled: Entry, told: str) -> None:
    notes = control_notes([prompt, shuffled], {"shuffled": "prompt"})
    wanted = [f"A CONTROL DOES NOT LOSE: {told}. Do not trust a gain that a control shares."]
    assert notes == (wanted if told else [])


def test_a_control_of_vanilla_or_of_someone_absent_must_not_be_better_than_vanilla() -> None:
    for of in ("", "absent"):
        (note,) = control_notes([ranked("cfg", 0.1, "better")], {"cfg": of})
        assert "the control cfg (+10.0 %) is better than vanilla" in note
        assert control_notes([ranked("cfg", 0.1)], {"cfg": of}) == []


def test_what_scores_and_loses_the_probe_is_named_unless_it_is_a_control() -> None:
    loses, wins = Interval(-0.1, -0.15, -0.07, 9), Interval(-0.1, -0.15, 0.0, 9)
    constant = ranked("constant", 0.324, "better", probe=loses)
    assert constant.loses_probe and not ranked("wide", 0.3, "better", probe=wins).loses_probe
    assert not ranked("none", 0.3, "better").loses_probe
    (note,) = denied_notes([constant, ranked("wide", 0.3, "better", probe=wins)], ())
    assert note == "'constant' (+32.4 %, probe -10.0 %): better by shift, worse by the probe, so no winner."
    assert denied_notes([constant], ("constant",)) == denied_notes([], ()) == []


def test_references_that_contradict_each_other_beyond_chance_are_told_widest_first() -> None:
    def both(name: str, own: Interval, plain: Interval, other: Interval) -> Entry:
        return Entry(
            name, 1, near(0), 1.0, "none", (), None, None, {"cka@own": own, "cka": plain, "b@own": other}
        )

    up, down = near(3, 1), near(-2, 1)
    one, two = both("one", up, down, up), both("two", near(9, 1), near(-8, 1), up)
    (note,) = contradictions([one, two], ["cka@own", "b@own", "eps"])
    assert "'two' (cka@own +900.0 %, cka -800.0 %), 'one' (cka@own +300.0 %, cka -200.0 %)" in note
    assert contradictions([one], ["b@own", "eps"]) == []  # b has one reference only, cka does not score
    for own, plain in ((up, up), (near(1, 2), down), (up, near(-1, 1)), (down, near(0.5, 1))):
        assert contradictions([both("x", own, plain, up)], ["cka@own"]) == []
    assert contradictions([both("x", down, up, up)], ["cka@own"]) != []


def test_probes_that_say_nothing_are_named() -> None:
    assert silent_notes([]) == [] and silent_notes(["linear"])[0].startswith(
        "'linear' reads no more than chance"
    )
