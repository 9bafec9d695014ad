"""The main job: measure every technique on the same samples, rank them, write the run directory."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gate.errors import FULL, ConfigurationError, DamagedError, GateError, MissingWeightsError
from gate.plugins import is_ours
from gate.registry import select_plugins, select_techniques
from gate.runs.directory import (
    PICTURES,
    SCORES,
    append_journal,
    create_directory,
    load_results,
    mark_of,
    open_run,
    plain,
    read_journal,
    read_run,
    write_arrays,
    write_sealed,
)
from gate.runs.parts import any_part, drop_leftovers, drop_parts, has_part, load_part, save_part
from gate.runs.schema import Results
from gate.runs.states import STATES, joined
from gate.sample import reasons
from gate.screening.attempt import VANILLA
from gate.screening.config import ScreenConfig, make_config
from gate.screening.outcome import Interrupted, Log, Screening, draw
from gate.screening.samples import check_inputs
from gate.screening.workers import attempts, choose_workers

Progress = Callable[[str, int, int], None]


def screen(
    config: ScreenConfig | str | Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    log: Log | None = None,
    **settings: Any,
) -> Screening:
    """Screen techniques. Give a `ScreenConfig`, or names of techniques, or its fields as keywords.

    Raises UsageError, ConfigurationError, MissingWeightsError before anything is computed; `Interrupted` on Ctrl-C.
    A technique that fails is recorded in `skipped`, and the others go on.
    """
    progress, log = progress or (lambda *_: None), log or (lambda _: None)
    if config is None or isinstance(config, ScreenConfig):
        chosen = make_config({**(config.model_dump(exclude_unset=True) if config else {}), **settings})
    else:
        chosen = make_config({"techniques": config, **settings})
    check_inputs(chosen)
    select_techniques(chosen.techniques)
    folder = create_directory(chosen.output)
    with _keeping(folder):
        write_sealed(folder / "run.json", {"config": chosen.model_dump()})
        return _screen(chosen, folder, progress, log)


def resume(run: str | Path, *, progress: Progress | None = None, log: Log | None = None) -> Screening:
    """Make what a run lacks: techniques that were not finished, results.json out of its scores, figures.

    What is finished is not measured again. Raises UsageError where there is no run, DamagedError where what is there is
    not what was written.
    """
    folder, tell = Path(run), log or (lambda _: None)
    if (folder / "results.json").is_file():
        try:
            load_results(folder)
        except DamagedError:
            tell(f"{folder / 'results.json'} is damaged: making it anew")
        else:
            done = Screening(folder, open_run(folder).results)
            drop_parts(folder)
            draw(done, tell, missing=True)
            return done
    config = make_config(read_run(folder)["config"])
    drop_leftovers(folder)
    with _keeping(folder, begun=True):
        (folder / "parts").mkdir(exist_ok=True)
        return _screen(config, folder, progress or (lambda *_: None), tell)


@contextlib.contextmanager
def _keeping(folder: Path, *, begun: bool = False) -> Iterator[None]:
    """What is finished stays, and is said how to go on from; a run that has nothing yet leaves no directory."""
    try:
        yield
    except (GateError, KeyboardInterrupt, OSError) as error:
        begun = begun or any_part(folder)
        if not begun:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt) and begun and not isinstance(error, Interrupted):
            raise Interrupted(folder) from error
        if isinstance(error, OSError) and error.errno in FULL:
            then = f"go on with: gate resume {folder}" if begun else "repeat the command"
            raise ConfigurationError(
                f"{folder} cannot be written ({error.strerror}); what is finished is kept: make room, and {then}"
            ) from error
        raise


def _screen(config: ScreenConfig, folder: Path, progress: Progress, log: Log) -> Screening:
    began, asked = time.perf_counter(), config.model_fields_set
    names = select_techniques(config.techniques)
    log(f"loading {config.backbone} to screen {len(names)} technique{'s' if len(names) > 1 else ''}")
    from gate.screening.bench import open_bench  # torch, seconds
    from gate.screening.stored import unpack_scores

    select_plugins("metric", config.metrics)  # refused before the backbone is loaded
    select_plugins("probe", config.probes)
    bench = open_bench(config, scratch=folder / "parts", log=log)
    backbone, samples, config = bench.backbone, bench.samples, bench.config
    if samples.skipped:
        found = len(samples) + len(samples.skipped)
        log(f"{len(samples.skipped)} of {found} files are left out ({reasons(samples.skipped)})")
    if len(samples) < config.samples and "samples" in asked:
        log(f"{config.samples} images were asked for, and {samples.name} has {len(samples)}")
    log(
        f"{len(samples)} images of {samples.name} on {backbone.name} ({backbone.device}, "
        f"{str(backbone.dtype).removeprefix('torch.')}), {levels_text(backbone.schedule, bench.timesteps)}, "
        f"{config.seeds} noise seeds, batches of {bench.batch_size}"
    )
    run = {
        "config": config.model_dump(),
        "environment": _environment(backbone),
        "hashes": {"weights": backbone.fingerprint(), "samples": samples.fingerprint()},
    }
    _same_or_new(folder, run)
    write_sealed(folder / "run.json", run)
    unpack_scores(folder, mark_of(run))
    measured, skipped = _measure_all(bench, names, folder, mark_of(run), progress, log)
    _write(bench, measured, skipped, folder, {**run, "seconds": time.perf_counter() - began})
    drop_parts(folder)
    done = Screening(folder, open_run(folder).results)
    draw(done, log)
    return done


def _write(
    bench: Any,
    measured: Mapping[str, Any],
    skipped: list[dict[str, Any]],
    folder: Path,
    run: dict[str, Any],
) -> None:
    """The files of a finished run; results.json, which makes it one, comes last. run: what it says of itself."""
    from gate.screening.results import assemble  # scipy: with workers, it is there by now
    from gate.screening.stored import costs

    results, arrays, pictures = assemble(bench, measured, skipped)
    mark, states = mark_of(run), {name: m.state for name, m in measured.items() if m.state}
    seals, facts = {}, {}
    if states:
        seals["states"] = write_arrays(folder / STATES, joined(states), mark=mark)
        facts["states"] = seals["states"]  # whoever has lost results.json knows that there were some
    seals["scores"] = write_arrays(folder / SCORES, arrays, techniques=costs(measured), mark=mark, **facts)
    if pictures:
        seals["pictures"] = write_arrays(folder / PICTURES, pictures, mark=mark)
    results = {**results, **run, "learned": sorted(states), "hashes": {**run["hashes"], **seals}}
    write_sealed(folder / "results.json", Results.model_validate(plain(results)))


def levels_text(schedule: Any, levels: tuple[int, ...]) -> str:
    """Timesteps with what they mean: alpha_bar, or sigma where the schedule is of flow matching."""
    import torch

    t = torch.tensor(levels)
    name, values = (
        ("alpha_bar", schedule.alpha_bar(t)) if schedule.time is None else ("sigma", schedule.sigma(t))
    )
    shown = (f"{i} ({name} {value:.3g})" for i, value in zip(levels, values.tolist(), strict=True))
    return f"timesteps {', '.join(shown)}"


def _same_or_new(folder: Path, run: Mapping[str, Any]) -> None:
    """Refuse to resume with other weights or samples than the run began with."""
    if read_run(folder).get("hashes", run["hashes"]) != run["hashes"]:
        raise ConfigurationError(
            f"The weights or images of {folder} have changed since it began; screen again."
        )


def _measure_all(
    bench: Any, names: list[str], folder: Path, mark: str, progress: Progress, log: Log
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure vanilla and every technique; finished ones are read back, failures are recorded."""
    from gate.screening.measured import Measured

    everyone = [VANILLA, *names]
    for name in everyone:  # refused before hours of measuring, not after
        load_part(folder, name, Measured, mark)
    skipped = _spoilers(folder)
    todo = [name for name in everyone if name not in skipped and not has_part(folder, name)]
    unfetched: set[str] = set()
    rows = len(bench.samples) * len(bench.timesteps) * bench.config.seeds
    done = rows * (len(everyone) - len(todo))
    count = _Counter(progress, done, rows * len(everyone))
    try:
        for tried in attempts(bench, todo, choose_workers(bench, len(todo)), count):
            for notice in tried.notices:
                log(notice)
            if tried.measured is not None:
                save_part(folder, tried.name, tried.measured, mark)
                append_journal(folder, name=tried.name, calls=tried.measured.calls, ms=tried.measured.ms)
            elif tried.full:
                raise OSError(tried.full, os.strerror(tried.full))
            elif tried.name == VANILLA:
                strangers = [p.name for p in (*bench.metrics, *bench.probes) if not is_ours(type(p))]
                whose = f" Measured with {', '.join(strangers)}." if strangers else ""
                raise ConfigurationError(f"The plain backbone could not be measured: {tried.reason}.{whose}")
            else:
                entry = {"name": tried.name, "reason": tried.reason, "fix": tried.fix, "failed": tried.failed}
                skipped[tried.name] = entry
                unfetched |= {tried.name} if tried.unfetched else set()
                log(f"skipped {tried.name}: {tried.reason}")
                append_journal(folder, **entry, spoils=tried.spoils)
                if tried.spoils:
                    raise ConfigurationError(
                        f"{tried.name} cannot be trusted, and nothing that is measured after it in this process: "
                        f"{tried.reason}. What was measured before is kept; finish without it: gate resume {folder}"
                    )
            done += rows
            count.finished(tried.name, done)
    except KeyboardInterrupt as stop:
        raise Interrupted(folder) from stop
    # nobody held them in memory until here
    parts = ((name, load_part(folder, name, Measured, mark)) for name in everyone)
    measured = {name: part for name, part in parts if part is not None}
    if not any(name != VANILLA for name in measured):
        why = "; ".join(f"{s['name']}: {s['reason']}" for s in list(skipped.values())[:3])
        kind = MissingWeightsError if unfetched and unfetched == set(skipped) else ConfigurationError
        raise kind(f"No technique could be screened. {why}")
    return measured, [skipped[name] for name in names if name in skipped]


def _spoilers(folder: Path) -> dict[str, dict[str, Any]]:
    """Techniques after which this run had to stop: they are not tried again."""
    facts = ("name", "reason", "fix", "failed")
    entries = [entry for entry in read_journal(folder) if entry.get("spoils") is True]
    return {entry["name"]: {fact: entry[fact] for fact in facts} for entry in entries}


class _Counter:
    """Adds finished rows up to the whole screening's progress; never runs backwards, never past a finished part."""

    def __init__(self, progress: Progress, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total

    def __call__(self, name: str, rows: int) -> None:
        self.done = min(self.done + rows, self.total)
        self.progress(name or "measuring", self.done, self.total)

    def finished(self, name: str, done: int) -> None:
        """A technique is over: at least its rows count."""
        self.done = max(self.done, done)
        self.progress(name, self.done, self.total)


def _environment(backbone: Any) -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    packages = ("torch", "diffusers", "transformers", "numpy", "scipy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {p: version(p) for p in packages},
        "family": backbone.family,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
