"""A task, in full: features of vanilla and of another arm, heads trained seed by seed, figures beside each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gate.data.named import DATA
from gate.data.pairs import PairSet, load_pairs
from gate.data.public import Halves, load_public
from gate.errors import UsageError, unknown_name
from gate.sample import SampleSet
from gate.tasks.bench import Arm, Bench, Meter, images_of
from gate.tasks.config import VANILLA, TaskConfig
from gate.tasks.features import read_source
from gate.tasks.index import create_task
from gate.tasks.kept import Kept
from gate.tasks.result import Row, rows_of
from gate.tasks.task import Array, Task

if TYPE_CHECKING:
    from gate.backbone import Backbone

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation."""

    def __init__(self, folder: Path | None) -> None:
        kept = "finished heads are kept; go on with the same command"
        self.told = kept if folder else "nothing is kept without --output DIR"
        super().__init__(f"interrupted; {self.told}")


@dataclass(frozen=True)
class TaskResult:
    """What `gate task` found. rows: an arm and a figure each. facts: of data, backbone and heads."""

    task: str
    arms: tuple[str, ...]
    rows: tuple[Row, ...]
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    path: Path | None = None

    def row(self, arm: str, figure: str = "") -> Row:
        """The row of an arm: its primary figure, or another by name."""
        return next(
            r for r in self.rows if r.arm == arm and (r.figure == figure or (not figure and r.primary))
        )

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        rows = [row.as_json() for row in self.rows]
        return {"task": self.task, "rows": rows, "notes": list(self.notes), **dict(self.facts)}


def evaluate(
    config: TaskConfig,
    *,
    progress: Progress | None = None,
    log: Log | None = None,
    backbone: Backbone | None = None,
) -> TaskResult:
    """Train and judge heads on a technique's features and on vanilla's, on the same samples, with the same seeds.

    With an output, whatever is finished is kept there: the same call goes on where it stopped. backbone: one that is
    loaded already, instead of the config's. Raises UsageError, ConfigurationError, UnsuitableError, Interrupted.
    """
    try:
        return _evaluate(config, progress or (lambda *_: None), log or (lambda _: None), backbone)
    except KeyboardInterrupt as error:
        raise Interrupted(Path(config.output) if config.output else None) from error


def _evaluate(config: TaskConfig, progress: Progress, log: Log, backbone: Backbone | None) -> TaskResult:
    from gate.backbones import load_backbone, resolve_layers

    task = create_task(config.task)
    arms = _arms(config, task)
    if config.data not in DATA and not Path(config.data).is_dir():
        raise unknown_name("data set or folder", config.data, DATA, listing="gate list data")
    if backbone is None:
        log(f"loading {config.backbone}")
        backbone = load_backbone(
            config.backbone, device=config.device, dtype=config.dtype, image_size=config.image_size
        )
    layers = resolve_layers(config.layers, backbone.layer_paths)
    plain = resolve_layers(config.unweighted, backbone.layer_paths) if config.unweighted else ()
    backbone.calibrate((*layers, *plain))
    halves = _halves(config, task, backbone.image_size)
    train, test = halves.train, halves.test
    facts: dict[str, Any] = {
        "config": config.facts(),
        "settings": task.settings,
        "layers": list(layers),
        "weights": backbone.fingerprint(),
        "data": [images_of(half).fingerprint() for half in (train, test)],
    }
    kept = Kept.open(Path(config.output) if config.output else None, facts)
    bench = Bench(task, backbone, train, test, tuple(layers), tuple(plain), config, kept)
    log(f"{task.name}: {bench.said}, {_many(config.seeds, 'seed')}, {_many(len(arms), 'arm')}")
    meter = Meter(progress, len(arms) * bench.work, "")
    counts: dict[str, Array] = {}
    notes = [note for half in (train, test) for note in _left_out(images_of(half))]
    for arm in arms:
        meter.label = arm.name
        counts[arm.name], told = bench.counts_of(arm, meter)
        notes += [note for note in told if note not in notes]
    rows = rows_of(task, counts, vanilla=VANILLA, resamples=config.resamples)
    facts |= {"trained_on": bench.n_trained, "judged_on": bench.n_judged, "seeds": config.seeds}
    result = TaskResult(
        task.name, tuple(arm.name for arm in arms), tuple(rows), facts, tuple(notes), kept.folder
    )
    kept.finish(result.as_json())
    return result


def _left_out(samples: SampleSet) -> list[str]:
    """What of the data could not be used."""
    if not samples.skipped:
        return []
    key, reason = samples.skipped[0]
    n = len(samples.skipped)
    return [f"{_many(n, 'image')} of {samples.name} left out; the first: {key}, which {reason}."]


def _arms(config: TaskConfig, task: Task) -> tuple[Arm, ...]:
    """Vanilla first. Raises UsageError for unknown techniques, and where a task has nothing that could weigh."""
    vanilla = Arm(VANILLA, (read_source(VANILLA, config.timestep),))
    if config.amalgamate:
        if task.name == "correspondence":
            raise UsageError(
                "correspondence trains nothing, so it cannot learn weights; use correspondence-conv."
            )
        sources = tuple(read_source(text, config.timestep) for text in config.amalgamate)
        return vanilla, Arm(f"amalgamation of {', '.join(s.name for s in sources)}", sources, True)
    if config.technique == VANILLA:
        return (vanilla,)
    source = read_source(config.technique, config.timestep)
    return vanilla, Arm(source.name, (source,))


def _halves(config: TaskConfig, task: Task, size: int) -> Halves:
    """What is trained on and judged, by the data's name or folder."""
    if config.data not in DATA:
        return load_public(
            Path(config.data), task.needs, size=size, train=config.samples, test=config.test, seed=config.seed
        )
    n, m = config.samples or task.sizes[0], config.test or task.sizes[1]
    if task.needs == "pairs":
        both = _named_pairs(config.data, n + m, size, config.seed)
        return Halves(_part(both, 0, n), _part(both, n, n + m))
    every = DATA[config.data].load(n=n + m, size=size, seed=config.seed)
    return Halves(every[:n], every[n:])


def _named_pairs(name: str, n: int, size: int, seed: int) -> PairSet:
    """Pairs in the look of a named data set of scenes."""
    keywords = dict(getattr(DATA[name].load, "keywords", {}))
    return load_pairs(
        n=n, size=size, seed=seed, **{k: v for k, v in keywords.items() if k in ("objects", "style")}
    )


def _part(both: PairSet, start: int, stop: int) -> PairSet:
    """Some pairs of a set whose pairs have two samples each of their own."""
    pairs = tuple(
        dataclasses.replace(pair, source=pair.source - 2 * start, target=pair.target - 2 * start)
        for pair in both.pairs[start:stop]
    )
    return PairSet(both.samples[2 * start : 2 * stop], pairs)


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
