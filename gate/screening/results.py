"""From measured numbers to results.json: the ranking with its facts, the dense arrays and the pictures."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gate.measure import Measure, share_removed
from gate.metric import Metric
from gate.ranking.entry import Entry, Evidence, Weights
from gate.ranking.rank import rank, winners
from gate.ranking.statistics import Floats, Interval, paired_interval
from gate.ranking.verdict import verdict
from gate.registry import create_technique
from gate.runs.schema import SCHEMA_VERSION
from gate.screening.attempt import VANILLA
from gate.screening.bench import Bench
from gate.screening.config import SCORE_METRICS
from gate.screening.doubts import Doubt, counting, doubt, doubt_notes
from gate.screening.measured import SOME, TABLES, Measured
from gate.screening.pictures import PCA_SAMPLES, pca_image, pca_layer
from gate.screening.remarks import notes, scoring, steps, unconfirmed
from gate.version import __version__

WEIGHTS = Weights(suppression=0.5, probe=0.5)
Arrays = dict[str, NDArray[Any]]


def assemble(
    bench: Bench, measured: Mapping[str, Measured], skipped: list[dict[str, Any]]
) -> tuple[dict[str, Any], Arrays, Arrays]:
    """results.json without the run's own facts, the arrays of scores.safetensors, and the pictures."""
    names = [n for n in measured if n != VANILLA]
    evidence = {n: _evidence(bench, m) for n, m in measured.items()}
    techniques = {n: create_technique(n) for n in names}
    doubts = {n: doubt(t, measured[n], measured[VANILLA]) for n, t in techniques.items()}
    evidence = counting(evidence, doubts)
    controls = {n: t.control_of for n, t in techniques.items() if t.negative_control}
    scaled = [m.name for m in bench.comparing("feature") if not m.scale_invariant]
    rule, shown, silent = scoring(bench, evidence)
    ranking = rank(
        evidence[VANILLA],
        {n: evidence[n] for n in names},
        measures=bench.measures,
        weights=rule or WEIGHTS,
        score_metrics=SCORE_METRICS,
        score_probes=shown,
        seed=bench.config.seed,
        resamples=bench.config.resamples,
        feature_scale={n: _scale(measured[n], measured[VANILLA]) for n in names},
        scale_sensitive=[name + key for name in scaled for key in ("", "@own")],
    )
    best = winners(ranking, controls=[*controls, *unconfirmed(ranking, doubts)])
    rows = [_row(bench, e, techniques[e.name], doubts[e.name], measured, ranking.n) for e in ranking.entries]
    results = {
        "schema_version": SCHEMA_VERSION,
        "gate_version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "dropped_channels": {
            k: v.tolist() for k, v in getattr(bench.backbone, "massive", {}).items() if len(v)
        },
        "seeds": [bench.config.seed + s for s in range(bench.config.seeds)],
        "axes": _axes(bench, [VANILLA, *names]),
        "data": {"name": bench.samples.name, "n": len(bench.samples), "skipped": list(bench.samples.skipped)},
        "basis": ranking.basis,
        "score": {
            "metrics": ranking.score_metrics,
            "probes": ranking.score_probes,
            "weights": {}
            if rule
            else {"suppression": ranking.weights.suppression, "probe": ranking.weights.probe},
            "rule": dataclasses.asdict(rule) if rule else None,
            "confidence": ranking.confidence,
        },
        "ranking": rows,
        "skipped": skipped,
        "winners": list(best),
        "verdict": verdict(
            ranking,
            best,
            controls=controls,
            calls={n: measured[n].calls for n in names},
            **steps(bench, best),
        ),
        "notes": [*doubt_notes(doubts), *notes(bench, ranking, doubts, controls, silent)],
        "vanilla": _vanilla(bench, measured[VANILLA]),
    }
    return results, _dense(measured, names), _pictures(bench, measured, names)


def _evidence(bench: Bench, m: Measured) -> Evidence:
    """Average over noise seeds; cells are (timestep, layer) or timesteps. Statistics of the set keep seeds as cells."""
    known = bench.measures

    def cells(name: str, values: NDArray[Any], samples: int) -> NDArray[Any]:
        if known[name.partition("@")[0]].is_additive:
            values, samples = values.mean(axis=1, dtype=np.float64), samples - 1
        first = np.moveaxis(values, samples, 0)  # (n, cells ..., columns ...)
        flat = first.reshape(len(first), math.prod(first.shape[1 : samples + 1]), *first.shape[samples + 1 :])
        return np.ascontiguousarray(flat)

    shifts = {key: cells(key, values, 3) for key, values in m.shift.items()}
    shifts |= {key: cells(key, values, 2) for key, values in m.prediction.items()}
    counts = {key: _over_seeds(known[key], values) for key, values in m.counts.items()}
    refits = {
        key: np.moveaxis(values.mean(axis=1, dtype=np.float64), 1, 0) for key, values in m.refit.items()
    }
    return Evidence(shifts, counts, refits)


def _over_seeds(probe: Measure, values: NDArray[Any]) -> NDArray[Any]:
    """(t, s, n, ...) -> (n, t, ...): counts add up, other numbers are averaged; of a set (n, t s, ...)."""
    if probe.is_additive and values.dtype != np.int16:
        return np.asarray(values.mean(axis=1, dtype=np.float64).swapaxes(0, 1))
    if probe.is_additive:
        total = values[:, 0].copy() if values.shape[1] == 1 else values.sum(axis=1, dtype=_room(values))
        return np.asarray(total.swapaxes(0, 1))
    return np.moveaxis(values.reshape(-1, *values.shape[2:]), 1, 0)


def _room(values: NDArray[np.int16]) -> Any:
    """A type that holds the sum over seeds: counts stay small where they can, for there are many techniques."""
    return np.int16 if int(values.max(initial=0)) * values.shape[1] <= np.iinfo(np.int16).max else np.int32


def _scale(m: Measured, vanilla: Measured) -> float:
    """RMS of the features over vanilla's, geometric mean over layers."""
    assert m.scale is not None and vanilla.scale is not None
    return float(np.exp(np.mean(np.log(m.scale / vanilla.scale))))


def _row(
    bench: Bench, e: Entry, technique: Any, doubts: Doubt, measured: Mapping[str, Measured], n: int
) -> dict[str, Any]:
    m = measured[e.name]
    return {
        "name": e.name,
        "summary": technique.summary,
        "rank": e.rank,
        "score": e.score.value,
        "ci_low": e.score.low,
        "ci_high": e.score.high,
        "foretold_low": e.foretold.low if e.foretold else None,
        "foretold_high": e.foretold.high if e.foretold else None,
        "n": n,
        "p": e.p,
        "p_holm": e.p_holm,
        "verdict": e.verdict,
        **_triple("suppression", e.mean_suppression),
        **_triple("probe_gain", e.mean_error_removed),
        "metrics": {k: _interval(v) for k, v in e.suppression.items()},
        "probes": {k: _interval(v) for k, v in e.probes.items()},
        "images": {
            metric.name: _image(metric, m, measured[VANILLA], bench.config.seed)
            for metric in (*bench.comparing("image"), *bench.comparing("path"))
        },
        "feature_scale": _scale(m, measured[VANILLA]),
        "cost": {
            "calls": m.calls,
            "per_image": m.per_image,
            "per_pass": m.per_pass,
            "ms_per_image": m.ms,
            "fit_seconds": m.fit_seconds,
        },
        "tied_with": list(e.tied_with),
        "letters": e.letters,
        "negative_control": bool(technique.negative_control),
        "leak": doubts.leak,
        "degenerate": doubts.degenerate,
        "truth": list(doubts.truth),
        "carried": dict(doubts.carried),
        "settings": technique.settings,
        "source": technique.source,
    }


def _interval(value: Interval) -> dict[str, float]:
    return {"value": value.value, "ci_low": value.low, "ci_high": value.high, "n": value.n}


def _triple(name: str, value: Interval | None) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _image(metric: Metric, m: Measured, vanilla: Measured, seed: int) -> dict[str, float] | None:
    """Suppression of the reconstructed image's distance, over the few samples that were generated; None without one."""
    if metric.name not in m.image or not np.isfinite(m.image[metric.name]).all():
        return None
    ours, theirs = (metric.columns(each.image[metric.name][:, None]) for each in (m, vanilla))

    def share(counts: Floats) -> Floats:
        return share_removed(metric.errors(ours, counts), metric.errors(theirs, counts))

    return _interval(paired_interval(share, len(ours), seed=seed))


def _axes(bench: Bench, names: list[str]) -> dict[str, Any]:
    config = bench.config
    import torch

    timesteps, schedule = torch.tensor(bench.timesteps), bench.backbone.schedule
    ids = [s.id for s in bench.samples]
    return {
        "technique": names,
        "sample": ids,
        "timestep": list(bench.timesteps),
        "alpha_bar": schedule.alpha_bar(timesteps).tolist(),
        "sigma": schedule.sigma(timesteps).tolist(),
        "seed": [config.seed + s for s in range(config.seeds)],
        "layer": list(bench.layers),
        "picture_layer": pca_layer(bench.reference(slice(1)).features),
        "image_sample": ids[: config.image_samples],
        "classes": list(bench.samples.classes),
        "mask_classes": list(bench.samples.mask_classes),
    }


def _vanilla(bench: Bench, m: Measured) -> dict[str, Any]:
    evidence, known = _evidence(bench, m), bench.measures

    def figure(name: str, values: NDArray[Any]) -> float:
        """Over all samples, mean over cells."""
        measure = known[name.partition("@")[0]]
        columns = measure.columns(values)
        return measure.number(float(measure.errors(columns, np.ones(len(columns))).mean()))

    return {
        "metrics": {k: figure(k, v) for k, v in evidence.shifts.items()},
        "probes": {k: figure(k, v) for k, v in (evidence.counts or {}).items()},
        "ms_per_image": m.ms,
    }


def _dense(measured: Mapping[str, Measured], names: list[str]) -> Arrays:
    """Every number, axis 0 the techniques with vanilla first."""
    order = [measured[n] for n in (VANILLA, *names)]
    arrays: Arrays = {}
    for head, table in TABLES.items():
        for key in getattr(order[0], table):
            arrays[f"{head}/{key}"] = np.stack([getattr(m, table)[key] for m in order])
    arrays["feature-scale"] = np.stack([m.scale for m in order if m.scale is not None])
    for kind in SOME:
        known = [getattr(m, kind) for m in order if getattr(m, kind) is not None]
        if known:
            nothing = np.full_like(known[0], np.nan)
            rows = (getattr(m, kind) for m in order)
            arrays[kind] = np.stack([nothing if row is None else row for row in rows])
    return arrays


def _pictures(bench: Bench, measured: Mapping[str, Measured], names: list[str]) -> Arrays:
    order = [measured[n] for n in (VANILLA, *names)]
    pictures: Arrays = {}
    if order[0].reconstructions is not None:
        count = len(order[0].reconstructions)
        pictures["input"] = np.stack([s.image for s in bench.samples[:count]])
        pictures["reconstruction"] = np.stack(
            [m.reconstructions for m in order if m.reconstructions is not None]
        )
    if order[0].pca is not None:
        pictures["pca"] = np.stack([m.pca for m in order if m.pca is not None])
        first = bench.reference(slice(PCA_SAMPLES)).features
        pictures["pca_input"] = pca_image(first[pca_layer(first)], bench.pca_basis)
        pictures["pca_image"] = np.stack([s.image for s in bench.samples[:PCA_SAMPLES]])
    return pictures
