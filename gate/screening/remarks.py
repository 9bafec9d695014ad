"""Which probe scores, who may win, what to do next, and the notes: what a reader is told beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gate.backbones.layers import MEAN_MAP
from gate.ranking.chance import says_something
from gate.ranking.entry import Entry, Evidence, Ranking, Rule
from gate.ranking.notes import contradictions, control_notes, denied_notes, listed, silent_notes
from gate.ranking.rules import choose_rule, load_rules
from gate.screening.attempt import VANILLA
from gate.screening.bench import Bench
from gate.screening.doubts import Doubt

SHOWN_PROBES = (
    "pixel-brier",
    "pixel-linear",
    "brier",
    "linear",
)  # where no rule says which: the first that reads


def notes(
    bench: Bench,
    ranking: Ranking,
    doubts: Mapping[str, Doubt],
    controls: Mapping[str, str],
    silent: Sequence[str],
) -> list[str]:
    """Plain sentences, the loudest first. controls: as in `gate.ranking.verdict`. silent: probes that say nothing."""
    return [
        *control_notes(ranking.entries, controls),
        *denied_notes(ranking.entries, controls),
        *silent_notes(silent),
        *contradictions(ranking.entries, ranking.score_metrics),
        *ranking.notes,
        *_leak_notes(ranking, doubts),
        *_map_notes(bench),
    ]


def scoring(bench: Bench, evidence: Mapping[str, Evidence]) -> tuple[Rule | None, list[str], list[str]]:
    """The rule that scores, if one can; the probes that are shown beside it; and those that read nothing."""
    rules, known = load_rules(), {p.name: p for p in bench.probes}
    vanilla, others = evidence[VANILLA], {name: e for name, e in evidence.items() if name != VANILLA}
    settings = {"seed": bench.config.seed, "resamples": bench.config.resamples}
    asked = [
        p for p in known if p in SHOWN_PROBES or any(p in r[0].coefficients for r in rules.rules.values())
    ]
    read = [p for p in asked if says_something(known[p], vanilla, others, **settings)]
    rule = choose_rule(rules, [*vanilla.shifts, *read], len(bench.samples))
    shown = [p for p in read if rule and p in rule.coefficients] or [p for p in SHOWN_PROBES if p in read][:1]
    better = SHOWN_PROBES.index(shown[0]) if shown and shown[0] in SHOWN_PROBES else len(SHOWN_PROBES)
    silent = [p for p in SHOWN_PROBES[:better] if p in known and p not in read]
    return rule, shown, silent


def unconfirmed(ranking: Ranking, doubts: Mapping[str, Doubt]) -> list[str]:
    """Who cannot win: degenerate, or given the truth; whose probe gain lies below 0; and a leak without a probe that
    speaks for it, for shift flatters it."""
    out = [name for name, d in doubts.items() if d.degenerate or d.truth]
    leaks = [e for e in ranking.entries if doubts[e.name].leak]
    flattered = [e.name for e in leaks if not _borne_out(ranking, e)]
    return out + flattered + [e.name for e in ranking.entries if e.loses_probe]


def _borne_out(ranking: Ranking, entry: Entry) -> bool:
    """By probes alone, where they alone score; else by a probe gain above 0 beyond chance."""
    gain = entry.mean_error_removed
    return ranking.basis == "probes only" or (gain is not None and gain.low > 0)


def steps(bench: Bench, best: Sequence[str]) -> dict[str, str]:
    """What to do next: `more` to separate more, `next` where nothing is left to separate."""
    config, n = bench.config, len(bench.samples)
    if config.images is None:
        return {"more": f"--samples {4 * n}", "next": "the same on your own images, --images DIR"}
    lead = f"gate describe '{best[0]}'" if best else "gate list techniques"
    return {"more": f"more images, --samples {4 * n}", "next": lead}


def _leak_notes(ranking: Ranking, doubts: Mapping[str, Doubt]) -> list[str]:
    leaking = [e.name for e in ranking.entries if doubts[e.name].leak]
    if not leaking:
        return []
    return [
        f"Leaks ({listed(leaking, 4)}) start from or condition on the input's own pixels, so their images and shifts "
        "look closer than their features are useful: they win by probes or not at all."
    ]


def _map_notes(bench: Bench) -> list[str]:
    maps = [layer for layer in bench.layers if layer == MEAN_MAP or layer.endswith("cross.map")]
    if not maps:
        return []
    return [
        f"A channel of {' and '.join(maps)} is a token of the prompt: techniques that change the prompt change what "
        "the channels mean, and their shift there says nothing; compare them under one prompt, as generic-prompt does."
    ]
