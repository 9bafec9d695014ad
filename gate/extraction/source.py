"""What a finished run says about an extraction: techniques, fitted how, on which backbone, layers and timestep."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gate.composition import Composition
from gate.errors import (
    ConfigurationError,
    GateError,
    IncomparableError,
    PluginError,
    UsageError,
    unknown_name,
)
from gate.registry import create_technique, select_plugins
from gate.runs.directory import Run, open_run, plain
from gate.runs.schema import Row
from gate.runs.states import unpacked
from gate.technique import Technique

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.measure import Measure

VANILLA = "vanilla"
PLACE = (
    "revision",
    "pipeline",
    "image_size",
    "device",
    "offload",
)  # settings that `load_backbone` takes as they are


@dataclass(frozen=True, eq=False)
class Source:
    """A run, read for an extraction.

    techniques: the chosen ones, best first, or as they were named. settings: theirs, as measured. backbone: keywords of
    `gate.backbones.load_backbone`, in the dtype that the run had. layers: ids, in order. timesteps: of each technique,
    and `why` that one. seed: of the noise. classes: names of the run's image classes. weights: the fingerprint of the
    backbone that was screened.
    """

    path: Path
    techniques: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    backbone: Mapping[str, Any]
    layers: tuple[str, ...]
    timesteps: Mapping[str, int]
    why: Mapping[str, str]
    seed: int
    classes: tuple[str, ...]
    weights: str
    _run: Run = field(kw_only=True, repr=False)

    def technique(self, name: str) -> Technique:
        """One of `techniques`, as it was when it had been fitted in the run; it needs no `fit` any more.

        Raises UsageError where it is no longer installed, ConfigurationError where it would not be the one that was
        measured: its settings mean something else now, or the run did not keep what it learned.
        """
        if name == VANILLA:
            return Technique()
        made = create_technique(name)
        changed = _changed(plain(made.settings), self.settings[name])
        if changed:
            raise ConfigurationError(
                f"{name} is not what {self.path} measured any more: {changed}; screen again with this gate."
            )
        learned = self._run.results.learned
        if learned is None and any(type(part).state is not Technique.state for part in _parts(made)):
            raise ConfigurationError(
                f"{self.path} is of an older gate, which did not keep what {name} learned; screen again."
            )
        try:
            made.load_state(unpacked(self._run.states.get(name, {})))
        except Exception as error:  # a stranger's, or one of another version
            raise PluginError(
                f"{name} cannot take back what it learned in {self.path} ({type(error).__name__}: {error}); "
                "screen again with this gate."
            ) from error
        return made

    def check(self, backbone: Backbone) -> None:
        """Raises IncomparableError where the backbone has other weights than the one that was screened."""
        found = backbone.fingerprint()
        if found != self.weights:
            raise IncomparableError(
                f"The weights of {backbone.name} ({found}) are not those that {self.path} was screened with "
                f"({self.weights}), so its winners need not be theirs; load the same ones, or screen these."
            )


def open_source(
    run: str | Path, *, top: int = 0, techniques: Sequence[str] = (), timestep: int | None = None
) -> Source:
    """Read a finished run for an extraction.

    top: that many of its winners, best first (0: all of them; fewer where there are fewer). techniques: names that the
    run measured, instead: controls and "vanilla" too, since whoever names them means them. timestep: instead of the one
    of the run's at which a technique does best.

    Best is the timestep at which the probes of the score make the fewest errors on the technique's features; where
    there were none, the one at which the score's feature metrics see the least shift, each in units of vanilla's.

    Raises UsageError where there is no finished run, no such technique or no winner, DamagedError where a file is not
    what was written.
    """
    opened = open_run(run)
    results = opened.results
    if top < 0:
        raise UsageError(f"The number of winners is at least 1 (0: all of them), not {top}.")
    if top and techniques:
        raise UsageError("Give a number of winners or names of techniques, not both.")
    chosen = _named(opened, techniques) if techniques else _winners(opened, top)
    rows: dict[str, Row] = {row.name: row for row in results.ranking}
    found = {name: _best_timestep(opened, name, timestep) for name in chosen}
    config = results.config
    return Source(
        opened.path,
        chosen,
        {name: rows[name].settings if name in rows else {} for name in chosen},
        {
            "name": config["backbone"],
            "dtype": results.environment.get("dtype", config.get("dtype", "auto")),
            **{key: config[key] for key in PLACE if key in config},
        },
        tuple(results.axes.layer),
        {name: t for name, (t, _) in found.items()},
        {name: reason for name, (_, reason) in found.items()},
        results.seeds[0],
        tuple(results.axes.classes),
        results.hashes["weights"],
        _run=opened,
    )


def _winners(run: Run, top: int) -> tuple[str, ...]:
    winners = tuple(run.results.winners)
    if not winners:
        first = min(run.results.ranking, key=lambda row: row.rank, default=None)
        name = f"; name one with --technique (ranked first: {first.name})" if first else ""
        raise UsageError(
            f"No technique of {run.path} beats the plain backbone, so it has no winners{name}, or screen with more "
            "samples."
        )
    return winners[:top] if top else winners


def _named(run: Run, names: Sequence[str]) -> tuple[str, ...]:
    held = run.results.axes.technique
    return tuple(dict.fromkeys(_held(run, held, name.strip()) for name in names))


def _held(run: Run, held: Sequence[str], name: str) -> str:
    """The name as the run has it: settings may be spelled otherwise, and old names have new ones."""
    if name in held:
        return name
    with contextlib.suppress(GateError):
        spelled = create_technique(name).name
        if spelled in held:
            return spelled
    for row in run.results.skipped:
        if row.name == name:
            raise UsageError(f"{name} was not measured in {run.path}: {row.reason}")
    raise unknown_name(f"technique of {run.path}", name, held, listing=f"gate rank {run.path}")


def _parts(technique: Technique) -> tuple[Technique, ...]:
    return technique.parts if isinstance(technique, Composition) else (technique,)


def _changed(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """The first setting that has another value than it had, or is gone; "" where there is none. A new one is its
    default, which is what was there before."""
    for key, value in then.items():
        if key not in now:
            return f"it has no setting {key!r} now"
        if isinstance(value, Mapping) and isinstance(now[key], Mapping):
            if inner := _changed(now[key], value):
                return inner
        elif now[key] != value:
            return f"{key} was {value!r} and is {now[key]!r} now"
    return ""


def _best_timestep(run: Run, name: str, asked: int | None) -> tuple[int, str]:
    """The timestep and why it is that one."""
    timesteps = run.results.axes.timestep
    if asked is not None:
        return asked, "as asked"
    if len(timesteps) == 1:
        return timesteps[0], "the only one that was screened"
    probes = [p for p in run.results.score.probes if f"probe/{p}" in run.arrays]
    try:
        errors, of_what = (
            (_probe_errors(run, name, probes), f"the mean error of {', '.join(probes)}")
            if probes
            else (_shifts(run, name), "the shift of features, in units of vanilla's mean over timesteps,")
        )
    except (UsageError, PluginError) as error:  # a probe or metric that is not installed here
        raise UsageError(f"{error} Or say which timestep is wanted: --timestep.") from error
    told = ", ".join(f"{e:.3g} at {t}" for t, e in zip(timesteps, errors.tolist(), strict=True))
    return timesteps[int(errors.argmin())], f"{of_what} is least there: {told}"


def _probe_errors(run: Run, name: str, probes: Sequence[str]) -> NDArray[np.float64]:
    """(t,): mean over probes and seeds."""
    row = run.results.axes.technique.index(name)
    measures: list[Measure] = select_plugins("probe", probes)
    return np.mean([_errors(m, run.arrays[f"probe/{m.name}"][row], 1) for m in measures], axis=0)


def _shifts(run: Run, name: str) -> NDArray[np.float64]:
    """(t,): mean over the score's feature metrics, seeds and layers, each over vanilla's mean over timesteps."""
    names = run.results.axes.technique
    keys = [key for key in run.results.score.metrics if f"shift/{key}" in run.arrays]
    if not keys:
        raise UsageError(f"{run.path} holds no number by which timesteps could be compared.")
    found = []
    for key in keys:
        (metric,) = select_plugins("metric", [key.partition("@")[0]])
        values = run.arrays[f"shift/{key}"]
        usual = _errors(metric, values[names.index(VANILLA)], 2).mean()
        found.append(_errors(metric, values[names.index(name)], 2) / max(usual, np.finfo(np.float64).tiny))
    return np.mean(found, axis=0)


def _errors(measure: Measure, values: NDArray[Any], samples: int) -> NDArray[np.float64]:
    """The error at each timestep, mean over cells. values: (t, s, n, ...) or (t, s, l, n, ...); samples: n's axis less
    the one of timesteps."""
    n = values.shape[samples + 1]
    first = np.moveaxis(values, samples + 1, 1)  # (t, n, cells ..., columns ...)
    flat = first.reshape(len(first), n, -1, *values.shape[samples + 2 :])
    each = [measure.errors(measure.columns(at), np.ones(n)).mean() for at in flat]
    return np.array(each, np.float64)
