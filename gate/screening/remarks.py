"""Which probe scores, who may win, what to do next, and the notes: what a reader is told beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gate.backbones.layers import MEAN_MAP
from gate.ranking.chance import says_something
from gate.ranking.entry import Evidence, Ranking
from gate.ranking.notes import contradictions, control_notes, denied_notes, listed, silent_notes
from gate.screening.attempt import VANILLA
from gate.screening.bench import Bench
from gate.screening.doubts import Doubt

SCORE_PROBES = ("pixel-linear", "linear")  # the first that the samples have truth for and that says something


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


def score_probes(bench: Bench, evidence: Mapping[str, Evidence]) -> tuple[list[str], list[str]]:
    """The probe that scores, if any: the first that reads something from features; and those before it."""
    known = {p.name: p for p in bench.probes}
    others = {name: e for name, e in evidence.items() if name != VANILLA}
    silent: list[str] = []
    settings = {"seed": bench.config.seed, "resamples": bench.config.resamples}
    for name in (p for p in SCORE_PROBES if p in known):
        if says_something(known[name], evidence[VANILLA], others, **settings):
            return [name], silent
        silent.append(name)
    return [], silent


def unconfirmed(ranking: Ranking, doubts: Mapping[str, Doubt]) -> list[str]:
    """Who cannot win: degenerate, or given the truth; and whoever the probe does not bear out, whose gain lies below 0,
    or, of a leak, not above 0 beyond chance."""
    out = [name for name, d in doubts.items() if d.degenerate or d.truth]
    leaks = [e for e in ranking.entries if doubts[e.name].leak]
    flattered = [e.name for e in leaks if not (e.mean_error_removed and e.mean_error_removed.low > 0)]
    return out + flattered + [e.name for e in ranking.entries if e.loses_probe]


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
        "look closer than their features are useful; one wins only if its probe gain is above 0 beyond chance."
    ]


def _map_notes(bench: Bench) -> list[str]:
    maps = [layer for layer in bench.layers if layer == MEAN_MAP or layer.endswith("cross.map")]
    if not maps:
        return []
    return [
        f"A channel of {' and '.join(maps)} is a token of the prompt: techniques that change the prompt change what "
        "the channels mean, and their shift there says nothing; compare them under one prompt, as generic-prompt does."
    ]
