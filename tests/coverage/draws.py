"""Draws of a few scenes from many, each ranked as a run is; and synthetic errors, whose truth is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gate.errors import ConfigurationError
from gate.probe import make_folds
from gate.probes.pixel_brier import PixelBrier
from gate.probes.pixel_linear import PixelLinear
from gate.ranking.entry import Evidence, Ranking, Rule
from gate.ranking.rank import rank
from gate.ranking.rules import choose_rule, load_rules
from gate.ranking.statistics import Floats, paired_interval, studentise
from gate.sample import SampleSet
from gate.screening.config import SCORE_METRICS
from tests.coverage.pool import EQUALS, TECHNIQUES, VANILLA, Member, Numbers

PROBES = (PixelLinear(), PixelBrier())
PROBED = tuple(probe.name for probe in PROBES)
QUANTITIES = ("suppression", *PROBED, "score")
# how errors are skewed: (spread of sizes, of the technique's factor, how far the factor follows the size), lognormal
SKEWED = {
    "mild (0.4, 0.15)": (0.4, 0.15, 0.0),
    "skewed (1, 0.5)": (1.0, 0.5, 0.0),
    "very skewed (1.5, 0.5)": (1.5, 0.5, 0.0),
    "skewed, larger where it is worse (1, 0.5, 0.3)": (1.0, 0.5, 0.3),
}


def draw(scenes: SampleSet, pool: Mapping[Member, Numbers], n: int, seed: int) -> dict[str, Any]:
    """One draw: {technique: {quantity: [value, low, high]}}, and what was said of the six equals."""
    chosen = np.sort(np.random.default_rng([seed, n]).choice(len(scenes), n, replace=False))
    samples = dataclasses.replace(scenes, samples=tuple(scenes.samples[i] for i in chosen))
    try:
        folds = make_folds(samples)
    except ConfigurationError:  # fewer scenes than classes: shift only
        folds = None
    everyone: dict[Member, Evidence] = {}
    for member, numbers in pool.items():
        counts, refits = {}, {}
        if folds is not None:
            maps = numbers.maps[chosen].astype(np.float32)
            for probe in PROBES:
                columns, change = probe.judge(maps, samples, folds)
                counts[probe.name], refits[probe.name] = columns[:, None], change[:, None]
        everyone[member] = Evidence({m: numbers.shifts[m][chosen] for m in SCORE_METRICS}, counts, refits)
    rule = rule_of(n, with_masks=folds is not None)

    def ranked(members: tuple[Member, ...]) -> Ranking:
        return rank(
            everyone[VANILLA],
            {f"{name}-{noise}": everyone[name, noise] for name, noise in members},
            measures={} if folds is None else dict(zip(PROBED, PROBES, strict=True)),
            weights=rule,
            score_metrics=SCORE_METRICS,
            score_probes=() if folds is None else PROBED,
            seed=seed,
        )

    found: dict[str, Any] = {}
    for entry in ranked(TECHNIQUES).entries:
        each = {"suppression": entry.mean_suppression, **entry.probes, "score": entry.score}
        found[entry.name.rpartition("-")[0]] = {
            q: [i.value, i.low, i.high] for q, i in each.items() if i is not None
        }
    equal = ranked(EQUALS).entries
    found["equals"] = {
        "split": any(len(e.tied_with) < len(equal) - 1 for e in equal),
        "starred": sum(e.verdict != "none" for e in equal),
        "excluding 0": sum(e.score.excludes(0.0) for e in equal),
    }
    return found


def rule_of(n: int, *, with_masks: bool) -> Rule:
    """The rule that scores a run of n scenes."""
    told = (*SCORE_METRICS, *PROBED) if with_masks else SCORE_METRICS
    rule = choose_rule(load_rules(), told, n)
    assert rule is not None, "suppression's metrics alone are a rule's"
    return rule


def drawn(
    scenes: SampleSet, pool: Mapping[Member, Numbers], n: int, draws: int, folder: Path
) -> list[dict[str, Any]]:
    """The first `draws` draws of n; those that the folder holds are not made again."""
    file = folder / f"draws-{n}.jsonl"
    done = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []
    with file.open("a", encoding="utf-8") as out:
        for seed in range(len(done), draws):
            done.append(draw(scenes, pool, n, seed))
            out.write(json.dumps(done[-1]) + "\n")
            out.flush()
    return done[:draws]


def truths(
    pool: Mapping[Member, Numbers], done: list[dict[str, Any]], member: Member, n: int
) -> dict[str, float]:
    """What an interval should hold: of metrics the share of all scenes, of probes the mean over those trained on n of
    them, and of the score what the rule makes of both."""
    technique, vanilla = pool[member].shifts, pool[VANILLA].shifts
    shares = {m: float((1 - technique[m].sum(0) / vanilla[m].sum(0)).mean()) for m in SCORE_METRICS}
    rows = [row[member[0]] for row in done]
    gains = {q: float(np.mean([r[q][0] for r in rows])) for q in PROBED if q in rows[0]}
    rule = rule_of(n, with_masks=bool(gains))
    score = sum(weight * (shares | gains)[name] for name, weight in rule.coefficients.items())
    return {"suppression": float(np.mean(list(shares.values()))), **gains, "score": score}


def skewed(kind: str, n: int, draws: int) -> int:
    """Of `draws` intervals of n errors of a known share, how many hold it."""
    sizes, factor, follows = SKEWED[kind]
    truth = 1 - 0.8 * float(np.exp(((sizes + follows) ** 2 + factor**2 - sizes**2) / 2))
    rng, covered = np.random.default_rng(n), 0
    for _ in range(draws):
        z = rng.standard_normal(n)
        vanilla = np.exp(sizes * z)
        technique = 0.8 * vanilla * np.exp(factor * rng.standard_normal(n) + follows * z)

        def share(counts: Floats, t: Floats = technique, v: Floats = vanilla) -> Floats:
            return np.asarray(1 - (counts @ t) / (counts @ v))

        covered += not paired_interval(share, n, resamples=1000, seed=0).excludes(truth)
    return covered


def skewed_equals(n: int, draws: int) -> int:
    """Of `draws` runs of six equal techniques with skewed errors, in how many some pair is told apart."""
    rng, split = np.random.default_rng(n), 0
    i, j = np.triu_indices(6, 1)
    for _ in range(draws):
        vanilla = np.exp(rng.standard_normal((n, 1)))
        techniques = vanilla * np.exp(0.5 * rng.standard_normal((n, 6)))

        def differences(counts: Floats, t: Floats = techniques, v: Floats = vanilla) -> Floats:
            shares = 1 - (counts @ t) / (counts @ v)
            return np.asarray(np.moveaxis(shares[..., i] - shares[..., j], -1, 0))

        split += bool(studentise(differences, n, resamples=1000, seed=0).differ().any())
    return split
