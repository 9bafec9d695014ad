"""The ranking finds what was planted, nothing where there is nothing, and says where it can be wrong."""

# long: one ranking, looked at from every side with the same planted scene
from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, jaccard_score

from gate.errors import IncomparableError, NonFiniteError, UsageError
from gate.measure import confusion_error, confusion_margins, share_removed
from gate.probes.linear import Linear
from gate.probes.pixel_linear import PixelLinear
from gate.ranking.entry import Evidence, Ranking, Weights
from gate.ranking.rank import rank, winners
from gate.ranking.statistics import paired_interval

METRICS = ("laplacian", "cosine")
PROBES = {"linear": Linear(), "pixel-linear": PixelLinear()}
N, CELLS, K = 48, 4, 5


def confusions(accuracy: float, rng: np.random.Generator, n: int = N, pixels: int = 60) -> np.ndarray:
    """(n, CELLS, K, K) counts of `pixels` decisions per sample, right with the given probability."""
    counts = np.zeros((n, CELLS, K, K))
    true = rng.integers(0, K, (n, CELLS, pixels))
    wrong = (true + rng.integers(1, K, true.shape)) % K
    predicted = np.where(rng.random(true.shape) < accuracy, true, wrong)
    i, c, _ = np.indices(true.shape)
    np.add.at(counts, (i, c, true, predicted), 1)
    return counts


def evidence(base: np.ndarray, ratio: float, accuracy: float, seed: int, noise: float = 0.1) -> Evidence:
    """Shifts of `ratio` times the base (n, CELLS), and probes of the given accuracy."""
    rng = np.random.default_rng(seed)
    shifts = {m: ratio * base * rng.lognormal(0, noise, base.shape) for m in METRICS}
    n = len(base)
    return Evidence(
        shifts, {"linear": confusions(accuracy, rng, n, 10), "pixel-linear": confusions(accuracy, rng, n)}
    )


def scene(n: int = N) -> tuple[Evidence, dict[str, Evidence]]:
    """Vanilla, a planted winner, two equals that are a little better, one that changes nothing, one worse."""
    base = np.random.default_rng(0).lognormal(0, 0.5, (n, CELLS))
    vanilla = evidence(base, 1.0, 0.60, 1)
    return vanilla, {
        "worse": evidence(base, 1.2, 0.5, 2),
        "little-a": evidence(base, 0.92, 0.63, 3),
        "winner": evidence(base, 0.7, 0.75, 4),
        "little-b": evidence(base, 0.92, 0.63, 6),
        "same": vanilla,
    }


def ranked(vanilla: Evidence, techniques: dict[str, Evidence], **changes: object) -> Ranking:
    settings: dict = {
        "measures": PROBES,
        "score_metrics": METRICS,
        "score_probes": ("linear", "pixel-linear"),
        "seed": 0,
        "resamples": 1000,
    }
    return rank(vanilla, techniques, **{**settings, **changes})


def test_planted_winner_is_first_equals_cannot_be_told_apart_and_worse_is_last():
    vanilla, techniques = scene()
    ranking = ranked(vanilla, techniques)
    by_name = {e.name: e for e in ranking.entries}
    assert [e.rank for e in ranking.entries] == [1, 2, 3, 4, 5]
    assert [e.letters for e in ranking.entries] == ["a", "b", "b", "c", "d"]
    assert ranking.entries[0].name == "winner" and ranking.entries[-1].name == "worse"
    assert by_name["little-a"].tied_with == ("little-b",) and by_name["little-b"].tied_with == ("little-a",)
    assert by_name["winner"].tied_with == ()
    verdicts = {name: e.verdict for name, e in by_name.items()}
    assert verdicts["winner"] == "better" and verdicts["worse"] == "worse" and verdicts["same"] == "none"
    assert winners(ranking)[0] == "winner" and "worse" not in winners(ranking, 5)
    assert "same" not in winners(ranking, 5)
    assert winners(ranking, 1) == ("winner",)
    assert "winner" not in winners(ranking, 5, controls={"winner"})
    assert ranking.basis == "shift and probes" and ranking.n == N


def test_vanilla_against_itself_is_exactly_zero():
    vanilla, techniques = scene()
    entry = next(e for e in ranked(vanilla, techniques).entries if e.name == "same")
    intervals = [entry.score, entry.mean_suppression, entry.mean_error_removed]
    for interval in [*intervals, *entry.suppression.values(), *entry.probes.values()]:
        assert (interval.value, interval.low, interval.high, interval.n) == (0.0, 0.0, 0.0, N)
    assert entry.p == entry.p_holm == 1.0


def test_score_is_what_a_direct_computation_gives():
    vanilla, techniques = scene()
    technique = techniques["winner"]
    ranking = ranked(vanilla, {"winner": technique}, weights=Weights(0.3, 0.7))
    (entry,) = ranking.entries
    suppression = {m: np.mean(1 - technique.shifts[m].sum(0) / vanilla.shifts[m].sum(0)) for m in METRICS}
    for metric in METRICS:
        assert entry.suppression[metric].value == pytest.approx(suppression[metric], rel=1e-12)

    def error(counts: np.ndarray, probe: str) -> float:
        true, predicted = np.indices(counts.shape).reshape(2, -1).repeat(counts.astype(int).ravel(), axis=1)
        if probe == "linear":
            return 1 - balanced_accuracy_score(true, predicted)
        return 1 - jaccard_score(true, predicted, average="macro")

    removed = {}
    for probe in PROBES:
        t, v = technique.counts[probe].sum(0), vanilla.counts[probe].sum(0)
        removed[probe] = np.mean([1 - error(t[c], probe) / error(v[c], probe) for c in range(CELLS)])
        assert entry.probes[probe].value == pytest.approx(removed[probe], rel=1e-12)
    expected = 0.3 * np.mean(list(suppression.values())) + 0.7 * np.mean(list(removed.values()))
    assert entry.score.value == pytest.approx(expected, rel=1e-12)
    assert entry.mean_suppression.value == pytest.approx(np.mean(list(suppression.values())))
    assert entry.mean_error_removed.value == pytest.approx(np.mean(list(removed.values())))


def test_intervals_are_paired_and_of_the_direct_statistic():
    vanilla, techniques = scene()
    t, v = techniques["winner"].shifts["cosine"], vanilla.shifts["cosine"]
    expected = paired_interval(lambda c: (1 - (c @ t) / (c @ v)).mean(-1), N, resamples=1000, seed=0)
    got = ranked(vanilla, techniques).entries[0].suppression["cosine"]
    assert (got.low, got.value, got.high) == pytest.approx(
        (expected.low, expected.value, expected.high), rel=1e-9
    )


def test_confusion_error_agrees_with_scikit_learn_where_classes_are_absent():
    rng = np.random.default_rng(0)
    true, predicted = (
        rng.integers(0, 3, 50),
        rng.integers(1, 4, 50),
    )  # of 6 classes, 0..2 true and 1..3 predicted
    counts = confusion_matrix(true, predicted, labels=range(6)).astype(float)
    margins = confusion_margins(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recall = balanced_accuracy_score(true, predicted)
    assert confusion_error(margins, "miou") == pytest.approx(
        1 - jaccard_score(true, predicted, average="macro", labels=np.unique(true))
    )
    assert confusion_error(margins, "balanced-accuracy") == pytest.approx(1 - recall)
    assert confusion_error(np.zeros((3, 4)), "miou") == 0


def test_shares_by_hand():
    # Cells: halved; both 0 counts as 0; only vanilla 0 is skipped. (0.5 + 0) / 2.
    assert share_removed(np.array([1.0, 0, 3]), np.array([2.0, 0, 0])) == 0.25
    assert share_removed(np.array([1.0]), np.array([0.0])) == 0
    assert share_removed(np.array([0.0]), np.array([4.0])) == 1


def test_null_effect_is_covered_by_90_to_99_percent_of_500_intervals():
    rng = np.random.default_rng(11)
    covered = false_alarms = 0
    for draw in range(500):
        base = rng.lognormal(0, 0.4, (32, 2))
        vanilla, null = (Evidence({"cosine": base * rng.lognormal(0, 0.15, base.shape)}) for _ in range(2))
        (entry,) = ranked(
            vanilla, {"null": null}, score_metrics=("cosine",), score_probes=(), resamples=400, seed=draw
        ).entries
        covered += not entry.score.excludes(0.0)
        false_alarms += entry.verdict != "none"
    assert 0.90 <= covered / 500 <= 0.99
    assert false_alarms / 500 <= 0.08


def test_order_of_samples_and_of_techniques_changes_nothing_beyond_resampling_noise():
    vanilla, techniques = scene()
    first = ranked(vanilla, techniques)
    again = ranked(vanilla, dict(reversed(techniques.items())))
    assert again == first  # same seed, same order of samples: the same numbers, to the bit

    order = np.random.default_rng(9).permutation(N)

    def permuted(e: Evidence) -> Evidence:
        return Evidence(
            {m: x[order] for m, x in e.shifts.items()}, {p: x[order] for p, x in e.counts.items()}
        )

    other = ranked(permuted(vanilla), {name: permuted(e) for name, e in techniques.items()})
    assert [(e.name, e.rank, e.verdict) for e in other.entries] == [
        (e.name, e.rank, e.verdict) for e in first.entries
    ]
    for a, b in zip(first.entries, other.entries, strict=True):
        assert b.score.value == pytest.approx(a.score.value, abs=1e-12)
        width = a.score.high - a.score.low
        assert abs(b.score.low - a.score.low) <= 0.15 * width
        assert abs(b.score.high - a.score.high) <= 0.15 * width


def test_disagreeing_metrics_are_reported():
    base = np.random.default_rng(0).lognormal(0, 0.5, (N, CELLS))
    rng = np.random.default_rng(1)

    def planted(laplacian: float, cosine: float) -> Evidence:
        return Evidence(
            {
                m: r * base * rng.lognormal(0, 0.05, base.shape)
                for m, r in zip(METRICS, (laplacian, cosine), strict=True)
            }
        )

    agreeing = {f"t{i}": planted(1 - i / 10, 1 - i / 10) for i in range(5)}
    assert not any("order" in note for note in ranked(planted(1, 1), agreeing, score_probes=()).notes)
    opposite = {f"t{i}": planted(1 - i / 10, 0.5 + i / 10) for i in range(5)}
    (note,) = [n for n in ranked(planted(1, 1), opposite, score_probes=()).notes if "reverse" in n]
    assert "'laplacian' puts 't4' above 't0' and 'cosine' the reverse" in note
    assert "-1.00" in note


def test_places_follow_the_score_where_suppression_and_probes_point_apart():
    base = np.random.default_rng(0).lognormal(0, 0.5, (N, CELLS))
    techniques = {"still": evidence(base, 0.7, 0.6, 2), "reader": evidence(base, 0.95, 0.95, 3)}
    first, second = rank(
        evidence(base, 1.0, 0.6, 1),
        techniques,
        measures=PROBES,
        score_metrics=METRICS,
        score_probes=tuple(PROBES),
        seed=0,
    ).entries
    assert (first.name, second.name) == ("reader", "still") and first.rank < second.rank
    assert first.mean_suppression.value < second.mean_suppression.value


def test_order_and_place_follow_the_printed_score_and_nothing_else():
    """A noisy best and a steady second: neither a wide interval nor a tie moves anybody."""
    rng = np.random.default_rng(3)
    base = rng.lognormal(0, 0.5, (N, CELLS))

    def shifted(ratio: float, noise: float) -> Evidence:
        wanted = base * rng.lognormal(0, noise, base.shape)
        return Evidence({m: wanted * ratio * base.sum(0) / wanted.sum(0) for m in METRICS})

    techniques = {
        "steady": shifted(0.78, 0.01),
        "noisy": shifted(0.75, 1.0),
        "print-b": shifted(0.90004, 0.01),
        "print-a": shifted(0.9, 0.01),
        "far": shifted(1.3, 0.01),
    }
    ranking = ranked(Evidence({m: base for m in METRICS}), techniques, score_probes=())
    assert [(e.name, e.rank) for e in ranking.entries] == [
        ("noisy", 1),
        ("steady", 2),
        ("print-a", 3),
        ("print-b", 3),
        ("far", 5),
    ]
    by_name = {e.name: e for e in ranking.entries}
    assert "steady" in by_name["noisy"].tied_with and "noisy" in by_name["steady"].tied_with
    assert by_name["print-a"].tied_with == ("print-b",)
    for a in ranking.entries:
        for b in ranking.entries:
            if a is not b:
                assert (b.name in a.tied_with) == bool(set(a.letters) & set(b.letters))


def test_star_interval_and_p_are_one_test():
    """On 40 weak effects: the interval excludes 0 just where p <= 0.05, the verdict is there just where p_holm is."""
    rng = np.random.default_rng(8)
    base = rng.lognormal(0, 0.5, (24, 1))
    techniques = {
        f"t{i:02}": Evidence({"cosine": base * rng.lognormal(-0.01 * (i % 8), 0.08, base.shape)})
        for i in range(40)
    }
    entries = ranked(
        Evidence({"cosine": base}), techniques, score_metrics=("cosine",), score_probes=()
    ).entries
    assert all(e.score.excludes(0.0) == (e.p <= 0.05) for e in entries)
    assert all((e.verdict != "none") == (e.p_holm <= 0.05) and e.p <= e.p_holm for e in entries)
    alone = [e for e in entries if e.score.excludes(0.0) and e.verdict == "none"]
    assert alone and all(e.p <= 0.05 < e.p_holm for e in alone)  # the explanation is in the data
    assert {e.verdict for e in entries if e.score.value < 0} <= {"none", "worse"}


def test_the_smallest_p_survives_holm_over_many_techniques():
    base = np.random.default_rng(0).lognormal(0, 0.5, (N, 1))
    rng = np.random.default_rng(1)
    many = {
        f"t{i:02}": Evidence({"cosine": 0.5 * base * rng.lognormal(0, 0.1, base.shape)}) for i in range(30)
    }
    given: dict = {"score_metrics": ("cosine",), "score_probes": (), "measures": {}, "seed": 0}
    entries = rank(Evidence({"cosine": base}), many, resamples=200, **given).entries
    assert {e.verdict for e in entries} == {"better"} and {e.p for e in entries} == {1 / 3001}
    (one,) = rank(Evidence({"cosine": base}), {"t00": many["t00"]}, **given).entries
    assert one.p == 1 / 2001


def test_shares_never_exceed_one():
    base = np.random.default_rng(0).lognormal(0, 1.5, (9, 1))
    nearly = Evidence({"cosine": base * np.linspace(0.0, 0.1, 9)[:, None]})
    (entry,) = ranked(
        Evidence({"cosine": base}), {"nearly": nearly}, score_metrics=("cosine",), score_probes=()
    ).entries
    assert entry.score.high == 1.0 and entry.score.value < 1


def test_many_disagreements_are_cut_to_the_strongest():
    rng = np.random.default_rng(2)
    names = [f"m{i}" for i in range(8)]
    vanilla = Evidence({m: np.ones((N, 1)) for m in names})
    techniques = {
        f"t{i}": Evidence({m: np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.02, (N, 1))) for m in names})
        for i in range(6)
    }
    ranking = ranked(vanilla, techniques, score_metrics=names, score_probes=())
    assert len(ranking.notes) <= 6
    assert "more pairs" in ranking.notes[-1]


def test_feature_scale_is_reported_where_laplacian_is_in_use():
    vanilla, techniques = scene()
    scales = {"winner": 0.8, "little-a": 1.04, "unknown": 0.1}
    given: dict = {"feature_scale": scales, "scale_sensitive": ["laplacian"]}
    (note,) = [n for n in ranked(vanilla, techniques, **given).notes if "scale" in n]
    assert "'winner' (0.80 x" in note and "little-a" not in note and "unknown" not in note
    without = {n: Evidence({"cosine": e.shifts["cosine"]}) for n, e in techniques.items()}
    plain = Evidence({"cosine": vanilla.shifts["cosine"]})
    assert not any("scale" in n for n in ranked(plain, without, **given).notes)


def test_without_labels_suppression_alone_ranks_and_the_ranking_says_so():
    vanilla, techniques = scene()
    bare = {name: Evidence(e.shifts) for name, e in techniques.items()}
    ranking = ranked(Evidence(vanilla.shifts), bare)
    assert ranking.basis == "shift only" and ranking.score_probes == ()
    assert "suppression alone" in ranking.notes[0]
    best = ranking.entries[0]
    assert best.name == "winner" and best.score == best.mean_suppression
    assert best.mean_error_removed is None and best.probes == {}


def test_probes_alone_can_rank():
    vanilla, techniques = scene()
    ranking = ranked(vanilla, techniques, weights=Weights(0, 1))
    assert ranking.basis == "probes only" and ranking.score_metrics == ()
    assert ranking.entries[0].score == ranking.entries[0].mean_error_removed
    assert set(ranking.entries[0].suppression) == set(METRICS)  # reported all the same


def test_a_metric_outside_the_score_may_be_missing():
    vanilla, techniques = scene()
    techniques["winner"] = Evidence(
        {"cosine": techniques["winner"].shifts["cosine"]}, techniques["winner"].counts
    )
    ranking = ranked(vanilla, techniques, score_metrics=("cosine",))
    assert set(ranking.entries[0].suppression) == {"cosine"}
    with pytest.raises(IncomparableError, match=r"'winner' was not measured by 'laplacian'"):
        ranked(vanilla, techniques)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples_do_not_crash(n):
    vanilla, techniques = scene(n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranking = ranked(vanilla, techniques, resamples=200)
    assert len(ranking.entries) == 5
    assert winners(ranking) == ()  # too many resamples of so few do not vary
    if n == 1:
        assert math.isfinite(ranking.entries[0].score.value) and math.isnan(ranking.entries[0].score.low)


def test_a_probe_without_vanilla_errors_is_left_out_of_the_score_and_said_so():
    vanilla, techniques = scene()
    rng = np.random.default_rng(0)
    perfect = confusions(1.0, rng)
    full = Evidence(vanilla.shifts, {**vanilla.counts, "linear": perfect})
    same = Evidence(vanilla.shifts, {**vanilla.counts, "linear": perfect})
    ranking = ranked(full, {**techniques, "same": same})
    assert ranking.score_probes == ("pixel-linear",)
    assert any("no error on 'linear'" in note for note in ranking.notes)
    by_name = {e.name: e for e in ranking.entries}
    assert math.isnan(by_name["winner"].probes["linear"].value)
    assert by_name["same"].probes["linear"].value == 0
    assert math.isfinite(by_name["winner"].score.low)


def test_rare_vanilla_errors_give_finite_intervals():
    """Most resamples of one error in 24 samples have none or several; none may become NaN or infinite."""
    vanilla, better = np.zeros((2, 24, 1, 2, 2))
    for i in range(24):
        vanilla[i, 0, i % 2, i % 2 if i else 1] = better[i, 0, i % 2, i % 2] = 1
    shifts = {"cosine": np.ones((24, 1))}
    (entry,) = ranked(
        Evidence(shifts, {"linear": vanilla}),
        {"better": Evidence(shifts, {"linear": better})},
        score_metrics=("cosine",),
        score_probes=("linear",),
    ).entries
    assert entry.probes["linear"].value == 1.0
    assert entry.verdict == "none"


def test_nan_in_a_technique_puts_it_last_with_a_note_and_in_vanilla_refuses():
    vanilla, techniques = scene()
    broken = np.full((N, CELLS), 0.1)
    broken[3, 1] = np.nan
    techniques["broken"] = Evidence({**vanilla.shifts, "cosine": broken}, vanilla.counts)
    ranking = ranked(vanilla, techniques)
    last = ranking.entries[-1]
    assert (
        last.name == "broken" and last.rank == 6 and math.isnan(last.score.value) and math.isnan(last.p_holm)
    )
    assert last.verdict == "none" and last.tied_with == () and last.letters == ""
    assert all("broken" not in e.tied_with for e in ranking.entries)
    assert any("'broken'" in note and "NaN" in note for note in ranking.notes)
    assert ranking.entries[0].name == "winner"
    with pytest.raises(NonFiniteError, match="cosine"):
        ranked(techniques["broken"], techniques)


def test_what_cannot_be_compared_is_refused():
    vanilla, techniques = scene()
    shorter = Evidence({m: x[:-1] for m, x in vanilla.shifts.items()}, vanilla.counts)
    with pytest.raises(IncomparableError, match="same samples, timesteps and layers"):
        ranked(vanilla, {"shorter": shorter})
    with pytest.raises(IncomparableError, match="same samples throughout"):
        ranked(shorter, techniques)
    with pytest.raises(IncomparableError, match="Nothing to rank by"):
        ranked(vanilla, techniques, score_metrics=("cka",), score_probes=())
    with pytest.raises(IncomparableError, match="Nothing to rank by"):
        ranked(Evidence({"cosine": np.zeros((0, 2))}), {})
    for shape in ((48,), (48, 2, 2, 2)):
        with pytest.raises(IncomparableError, match=r"must be \(samples, cells\)"):
            ranked(Evidence({"cosine": np.ones(shape)}), {}, score_probes=())
    with pytest.raises(UsageError, match="nothing says how its numbers are read"):
        ranked(vanilla, techniques, measures={})
    with pytest.raises(UsageError, match="add up to 1"):
        Weights(0.5, 0.6)
    assert ranked(vanilla, {}).entries == ()


def test_twenty_five_techniques_come_in_the_order_of_what_they_remove():
    base = np.random.default_rng(0).lognormal(0, 0.5, (64, CELLS))
    vanilla = evidence(base, 1, 0.6, 0)
    techniques = {f"t{i}": evidence(base, 1 - i / 100, 0.6, i + 1) for i in range(25)}
    ranking = ranked(vanilla, techniques, score_probes=(), resamples=2000)
    order = [int(entry.name[1:]) for entry in ranking.entries]
    assert sorted(order) == list(range(25))
    assert np.corrcoef(order, np.arange(25))[0, 1] < -0.95


def test_nothing_measured_ranks_nothing():
    with pytest.raises(IncomparableError, match="neither shifts nor counts"):
        rank(Evidence({}), {"t": Evidence({})}, measures={}, score_metrics=(), seed=0)
