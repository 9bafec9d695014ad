"""A fitted rule: interpolated over n, chosen by what was measured, and intervals that hold what it strays by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gate.errors import IncomparableError
from gate.ranking.entry import Evidence, Ranking, Rule
from gate.ranking.rank import EVEN, rank
from gate.ranking.rules import FILE, Rules, choose_rule, load_rules
from gate.registry import select_plugins
from gate.screening.config import make_config

RAW: dict[str, Any] = {
    "source": "a test",
    "rules": {
        "masks": [
            {
                "n": 8,
                "coefficients": {"a": 4.0},
                "floor": 0.4,
                "slope": 0.2,
                "coverage": 0.9,
            },
            {
                "n": 32,
                "coefficients": {"a": 2.0},
                "floor": 0.2,
                "slope": 0.0,
                "coverage": 0.95,
            },
        ],
        "": [{"n": 8, "coefficients": {"b": 1.0}, "floor": 0, "slope": 0, "coverage": 0.9}],
    },
}


def test_between_two_numbers_of_images_a_rule_is_linear_in_log_n_and_beyond_them_the_nearest() -> None:
    rules = Rules.model_validate(RAW)
    assert rules.at("masks", 16).coefficients == {"a": pytest.approx(3.0)}
    assert rules.at("masks", 16).floor == pytest.approx(0.3)
    assert rules.at("masks", 2).coefficients == {"a": 4.0} and rules.at("masks", 999).coefficients == {
        "a": 2.0
    }
    assert rules.at("masks", 16).n == 16 and rules.at("masks", 16).source == "a test"


def test_the_first_rule_whose_measures_are_told_is_chosen() -> None:
    rules = Rules.model_validate(RAW)
    chosen = [choose_rule(rules, told, 8) for told in (["a", "b"], ["b"], ["c"])]
    assert [r and r.name for r in chosen] == ["masks", "", None]


def test_what_ships_reads_and_names_measures_that_exist() -> None:
    rules = load_rules()
    known = {m.name for kind in ("metric", "probe") for m in select_plugins(kind, ("all",))}
    assert list(rules.rules) == ["masks", "labels", ""]
    for fitted in rules.rules.values():
        assert [f.n for f in fitted] == sorted(f.n for f in fitted)
        assert {m.partition("@")[0] for f in fitted for m in f.coefficients} <= known


def test_an_unknown_field_of_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({**RAW, "more": 1}))
    with pytest.raises(ValidationError):
        load_rules(file)


def ruled(rule: Rule, n: int = 64) -> Ranking:
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 2, (n, 1))
    half, bit = (Evidence({"a": base * share}) for share in (0.5, 0.99))
    techniques = {"half": half, "bit": bit, "same": Evidence({"a": base})}
    return rank(
        Evidence({"a": base}),
        techniques,
        measures={},
        weights=rule,
        score_metrics=("a",),
        score_probes=(),
        seed=0,
    )


def test_a_prediction_is_the_sum_of_shares_and_its_interval_holds_what_the_truth_strays_by() -> None:
    ranking = ruled(Rule("", {"a": 0.6}, 0.02, 0.5, 64))
    half, bit, same = ranking.entries
    assert (half.name, half.score.value) == ("half", pytest.approx(0.3))
    assert bit.score.value == pytest.approx(0.006)
    # the shares are constant over samples, so all that is left is what the rule strays by: 1.96 standard deviations
    for entry, sd in ((half, math.hypot(0.02, 0.15)), (bit, math.hypot(0.02, 0.003))):
        assert entry.foretold is not None and entry.foretold.value == entry.score.value
        assert entry.foretold.high - entry.foretold.value == pytest.approx(1.96 * sd, rel=1e-3)
        assert entry.score.value - entry.foretold.low == pytest.approx(1.96 * sd, rel=1e-3)
    assert same.foretold is not None
    assert (same.foretold.low, same.foretold.high) == (0, 0), "nothing differs, so nothing will"
    assert ranking.rule is not None and ranking.basis == "shift only"


def test_p_ties_and_verdict_are_of_these_images_and_a_prediction_never_narrower() -> None:
    rng = np.random.default_rng(3)
    base = rng.uniform(1, 2, (64, 1))
    some = Evidence({"a": base * rng.uniform(0.7, 0.9, (64, 1))})
    arguments: dict[str, Any] = {"measures": {}, "score_metrics": ("a",), "seed": 0}
    ruled_, plain = (
        rank(Evidence({"a": base}), {"some": some}, weights=w, **arguments).entries[0]
        for w in (Rule("", {"a": 1.0}, 0.3, 0.0, 64), EVEN)
    )
    assert (ruled_.score, ruled_.p, ruled_.verdict) == (plain.score, plain.p, plain.verdict)
    assert ruled_.verdict == "better" and plain.foretold is None and ruled_.foretold is not None
    assert ruled_.foretold.low < 0 < ruled_.score.low


def test_a_rule_without_its_measure_is_refused() -> None:
    with pytest.raises(IncomparableError, match="the rule needs missing"):
        ruled(Rule("", {"missing": 1.0}, 0, 0, 64))


def test_what_ships_is_what_the_study_wrote() -> None:
    page = Path(__file__).parents[2] / "docs" / "study"
    assert json.loads((page / "rules.json").read_text()) == json.loads(FILE.read_text())
    said = json.loads((page / "results.json").read_text())["rules"]["rule: masks"]["coefficients"]
    at = {f.n: f.coefficients for f in load_rules().rules["masks"]}
    default = make_config({}).samples
    assert at[default] == pytest.approx(said, abs=1e-4), "the page tells the rule at the default n"
