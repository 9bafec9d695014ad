"""Where to take features: timesteps and layers of one technique, screened like techniques, against a default place."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gate.errors import ConfigurationError, UsageError
from gate.ranking.entry import Entry, Evidence, Verdict, Weights
from gate.ranking.statistics import Interval

if TYPE_CHECKING:
    from gate.probe import Array, Probe
    from gate.screening.bench import Bench
    from gate.screening.config import ScreenConfig
    from gate.technique import Technique

TIMESTEPS = (50, 100, 200, 300, 400, 500)  # of 1000
EVERY = "all"  # the layers together, as they are screened and extracted
PROBES = ("pixel-brier", "brier")  # masks before labels
PROBE_ALONE = Weights(suppression=0.0, probe=1.0)


@dataclass(frozen=True)
class Place:
    """A timestep and a layer, or all layers together.

    error: the probe's, in its own unit, lower is better. gain: the share of the base's error that is gone, higher is
    better; the base's own is 0. as_good: whether it cannot be told from the best place.
    """

    timestep: int
    layer: str
    error: float
    gain: Interval
    p_holm: float
    verdict: Verdict
    as_good: bool


@dataclass(frozen=True)
class Where:
    """All places of a technique, best first. base: what they are compared with, a place itself."""

    technique: str
    backbone: str
    data: str
    n: int
    seeds: int
    probe: str
    base: tuple[int, str]
    layers: tuple[str, ...]
    places: tuple[Place, ...]
    seconds: float

    @property
    def sentence(self) -> str:
        """What to use, and how sure that is."""
        best, ties = self.places[0], sum(p.as_good for p in self.places) - 1
        place = f"t = {best.timestep}, {best.layer if best.layer != EVERY else 'all layers together'}"
        if best.verdict != "better":
            return f"Stay at t = {self.base[0]} with all layers together: no place is better beyond chance."
        bounds = f"[{100 * best.gain.low:.1f}, {100 * best.gain.high:.1f}]"
        text = f"Use {place}: {100 * best.gain.value:+.1f} % {bounds} of the error at t = {self.base[0]} is gone."
        return text + (f" {ties} other places cannot be told from it." if ties else "")


def where(
    config: ScreenConfig,
    *,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    log: Callable[[str], None] = lambda _: None,
) -> Where:
    """Screen timesteps and layers for one technique, by the probe of `PROBES` that the samples have truth for.

    The base is the first timestep with all layers together, through the technique itself. Every place is judged on the
    same images, noise and folds; places are compared with the base and with each other as techniques are in a screen.
    Raises UsageError unless one technique is named, ConfigurationError where the images have neither masks nor labels.
    """
    from gate.registry import create_technique, select_techniques
    from gate.screening.attempt import VANILLA
    from gate.screening.bench import open_bench
    from gate.technique import Technique

    began = time.perf_counter()
    names = [VANILLA] if config.techniques == (VANILLA,) else select_techniques(config.techniques)
    if len(names) != 1:
        raise UsageError(
            f"--where is about one technique, and {len(names)} were named; give one: --techniques NAME, or vanilla."
        )
    given = config.model_fields_set & {"timesteps", "alpha_bar", "sigma"}
    levels = {} if given else {"timesteps": TIMESTEPS}
    config = config.model_copy(
        update={**levels, "metrics": ("eps",), "probes": ("standard",), "image_samples": 0}
    )
    bench = open_bench(config, log=log)
    known = {p.name: p for p in bench.probes}
    probe = next((known[name] for name in PROBES if name in known), None)
    if probe is None:
        raise ConfigurationError(
            f"{bench.samples.name} has neither masks nor labels, and without them nothing says which place is better; "
            "add masks or labels. Without them: gate screen --metrics high-frequency-ratio is a guide to timesteps."
        )
    technique = Technique() if names[0] == VANILLA else create_technique(names[0])
    technique.check(bench.backbone, technique.visible(bench.samples))
    technique.fit(bench.backbone, technique.visible(bench.samples))
    counts, refits = _judged(bench, technique, probe, progress)
    base = (bench.timesteps[0], EVERY)
    places = _ranked(probe, counts, refits, base, seed=config.seed, resamples=config.resamples)
    return Where(
        names[0],
        bench.backbone.name,
        bench.samples.name,
        len(bench.samples),
        config.seeds,
        probe.name,
        base,
        bench.layers,
        places,
        time.perf_counter() - began,
    )


def _judged(
    bench: Bench, technique: Technique, probe: Probe, progress: Callable[[str, int, int], None]
) -> tuple[dict[tuple[int, str], Array], dict[tuple[int, str], Array]]:
    """Columns (n, ...) of the probe, and its refits, of each (timestep, layer), averaged over noise seeds."""
    import dataclasses

    from gate.passes import stream
    from gate.probe import probe_map
    from gate.screening.shelf import IN_MEMORY, Shelf

    plan = dataclasses.replace(bench.plan(technique), clean=False, outputs=False)
    n, parts = len(bench.samples), [*bench.layers, EVERY]
    shelves = {
        (*cell, part): Shelf(n, folder=bench.scratch, limit=IN_MEMORY // len(plan.cells))
        for cell, part in itertools.product(plan.cells, parts)
    }
    total, done = n * len(plan.cells) + len(shelves), 0
    with contextlib.closing(stream(plan, memo=bench.memo)) as passes:
        for passed in passes:
            features, cell = passed.response.features, (int(passed.request.t[0]), passed.request.seed)
            for layer, feature in features.items():
                shelves[(*cell, layer)].put(passed.rows, probe_map({layer: feature}))
            shelves[(*cell, EVERY)].put(passed.rows, probe_map(features))
            done += len(passed.request.batch)
            progress("passes", done, total)
    counts: dict[tuple[int, str], Array] = {}
    refits: dict[tuple[int, str], Array] = {}
    for (t, _, layer), shelf in shelves.items():
        found, refit = bench.judged(probe, shelf.array())
        share = found / len(plan.seeds)
        counts[t, layer] = counts.get((t, layer), 0) + share
        refits[t, layer] = refits.get((t, layer), 0) + (np.zeros(n) if refit is None else refit) / len(
            plan.seeds
        )
        done += 1
        progress("probes", done, total)
    return counts, refits


def _ranked(
    probe: Probe,
    counts: Mapping[tuple[int, str], Array],
    refits: Mapping[tuple[int, str], Array],
    base: tuple[int, str],
    *,
    seed: int,
    resamples: int,
) -> tuple[Place, ...]:
    from gate.ranking.rank import rank

    evidence = {
        place: Evidence({}, {probe.name: columns[:, None]}, {probe.name: refits[place][:, None]})
        for place, columns in counts.items()
    }
    keys = {f"{t} {layer}": (t, layer) for t, layer in evidence}
    ranking = rank(
        evidence[base],
        {name: evidence[place] for name, place in keys.items()},
        measures={probe.name: probe},
        weights=PROBE_ALONE,
        score_metrics=(),
        score_probes=(probe.name,),
        seed=seed,
        resamples=resamples,
    )
    best = ranking.entries[0]

    def place(entry: Entry) -> Place:
        columns = probe.columns(counts[keys[entry.name]][:, None])
        error = float(probe.errors(columns, np.ones(len(columns)))[0])
        as_good = entry is best or entry.name in best.tied_with
        return Place(*keys[entry.name], error, entry.score, entry.p_holm, entry.verdict, as_good)

    return tuple(place(e) for e in ranking.entries)
