"""Measures that are not the plain kind: higher is better, several columns, statistics of the set, an own figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gate.errors import PluginError
from gate.measure import Measure, confusion_error, confusion_margins
from gate.metric import Metric
from gate.probe import Probe
from gate.ranking.entry import Evidence, Ranking
from gate.ranking.rank import rank

FACTS = {"summary": "s", "source": "s", "unit": "u", "weakness": "w"}
N = 40


class Likeness(Metric):
    name, direction, range = "likeness", "higher", (-1.0, 1.0)
    summary, source, unit, weakness = FACTS.values()

    def shift(self, features: Any, reference: Any) -> Any:
        raise NotImplementedError


class Endless(Measure):
    """0 is perfect, and there is no worst."""

    name = "endless"


class Ratio(Metric):
    """Sum of the first column over the sum of the second."""

    name, columns_each = "ratio", 2
    summary, source, unit, weakness = FACTS.values()

    def shift(self, features: Any, reference: Any) -> Any:
        raise NotImplementedError

    def error_of_sums(self, sums: Any, n: Any) -> Any:
        return sums[..., 0] / sums[..., 1]


class Spread(Metric):
    """Variance over the samples, which no sum of per-sample numbers gives without its square."""

    name = "spread"
    summary, source, unit, weakness = FACTS.values()

    def shift(self, features: Any, reference: Any) -> Any:
        raise NotImplementedError

    def error_of_set(self, columns: Any, multiplicities: Any) -> Any:
        share = multiplicities / multiplicities.sum(-1, keepdims=True)
        mean = share @ columns[:, 0]
        return np.maximum(share @ columns[:, 0] ** 2 - mean**2, 0)


class Agreement(Probe):
    """No truth: a number per sample, higher better."""

    name, needs, figure, range = "agreement", "", "", (0.0, 2.0)
    summary, source = "s", "s"

    def evaluate(self, features: Any, samples: Any, folds: Any) -> Any:
        raise NotImplementedError


def ranked(measure: Measure, vanilla: Any, technique: Any) -> Ranking:
    probe = isinstance(measure, Probe)

    def evidence(values: Any) -> Evidence:
        return Evidence({}, {measure.name: values}) if probe else Evidence({measure.name: values})

    return rank(
        evidence(vanilla),
        {"better": evidence(technique), "same": evidence(vanilla)},
        measures={measure.name: measure},
        score_metrics=() if probe else (measure.name,),
        score_probes=(measure.name,) if probe else (),
        seed=0,
        resamples=400,
    )


def values(low: float, high: float, *shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(low, high, (N, *shape))


@pytest.mark.parametrize(
    ("measure", "vanilla", "technique", "share"),
    [
        (Likeness(), np.full((N, 2), 0.5), np.full((N, 2), 0.75), 0.5),
        (Agreement(), np.full((N, 1), 0.5), np.full((N, 1), 1.25), 0.5),
        (Ratio(), np.tile([3.0, 4.0], (N, 1, 1)), np.tile([3.0, 8.0], (N, 1, 1)), 0.5),
        (Spread(), np.arange(N, dtype=float)[:, None], np.arange(N, dtype=float)[:, None] / 2, 0.75),
    ],
    ids=["higher", "own figure", "two columns", "set"],
)
def test_the_share_of_vanillas_error_by_hand(
    measure: Measure, vanilla: Any, technique: Any, share: float
) -> None:
    first, second = ranked(measure, vanilla, technique).entries
    assert first.name == "better" and first.verdict == "better"
    assert first.score.value == pytest.approx(share)
    assert second.score.value == 0 and second.verdict == "none" and second.p_holm == 1


def test_a_set_statistic_gives_what_sums_give_where_both_can() -> None:
    class Mean(Likeness):
        name = "mean-by-set"

        def error_of_set(self, columns: Any, multiplicities: Any) -> Any:
            return 1 - (multiplicities @ columns[:, 0]) / multiplicities.sum(-1)

    vanilla, technique = values(-0.5, 0.5, 3), values(0.0, 0.6, 3, seed=1)
    sums, by_set = (ranked(m, vanilla, technique).entries[0] for m in (Likeness(), Mean()))
    assert not Mean().is_additive and Likeness().is_additive
    for mine, other in ((sums.score, by_set.score), (sums.mean_suppression, by_set.mean_suppression)):
        assert mine is not None and other is not None
        assert (mine.value, mine.low, mine.high) == pytest.approx(
            (other.value, other.low, other.high), rel=1e-9
        )
    assert sums.p_holm == by_set.p_holm


def test_numbers_outside_the_range_are_refused_and_nan_is_not() -> None:
    stored = Likeness().stored(np.array([0.2, np.nan, 1.00005]))
    assert np.isnan(stored[1])
    with pytest.raises(PluginError, match="likeness gives 0.2 to 1.2, outside its range"):
        Likeness().stored(np.array([0.2, 1.2]))
    Ratio().stored(np.array([-5.0]))  # columns are not the number
    with pytest.raises(PluginError, match="outside its range"):  # one end is open, and the other is one
        Endless().stored(np.array([-0.1]))


def test_accuracy_of_many_resamples_and_cells_is_that_of_each() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 4))
    found = confusion_error(confusion_margins(counts), "accuracy")
    assert found.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        assert found[i, j] == pytest.approx(1 - np.trace(counts[i, j]) / counts[i, j].sum())


def test_facts_that_cannot_be_ranked_are_refused_where_they_are_written() -> None:
    with pytest.raises(PluginError, match="has no end there"):
        type("Endless", (Likeness,), {"name": "endless", "range": (0.0, float("inf"))})
    with pytest.raises(PluginError, match="direction 'up'"):
        type("Up", (Likeness,), {"name": "up", "direction": "up"})
    with pytest.raises(PluginError, match="the first number is the lower one"):
        type("Turned", (Likeness,), {"name": "turned", "range": (1.0, 0.0)})
    with pytest.raises(PluginError, match="only one that compares 'pass'"):
        type("Greedy", (Likeness,), {"name": "greedy", "needs": frozenset({"gradients"})})
    with pytest.raises(PluginError, match="needs smell"):
        type("Odd", (Likeness,), {"name": "odd", "needs": frozenset({"smell"})})
    with pytest.raises(PluginError, match="which lies in 0 ... 1"):
        type("Wide", (Agreement,), {"name": "wide", "figure": "miou"})


def test_an_error_stands_for_its_number_and_a_set_of_one_column_for_its_sum() -> None:
    assert Measure().number(0.3) == 0.3 and Likeness().number(0.3) == 0.7
    columns, drawn = values(-0.5, 0.5, 1), np.random.default_rng(1).integers(0, 3, (4, N)).astype(float)
    by_sums = Likeness().errors(columns[:, :, None], drawn)[:, 0]
    np.testing.assert_allclose(Likeness().error_of_set(columns, drawn), by_sums)
    with pytest.raises(PluginError, match="the first number is the lower one"):
        type("Point", (Likeness,), {"name": "point", "range": (1.0, 1.0)})


def test_one_class_alone_has_a_figure() -> None:
    margins = confusion_margins(np.array([[3, 1], [0, 0]]))  # class 0 four times, right three times
    assert confusion_error(margins, "balanced-accuracy") == 0.25 and confusion_error(margins, "miou") == 0.25
