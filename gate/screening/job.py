"""The main job: measure every technique on the same samples, rank them, write the run directory."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gate.errors import (
    EXIT_PARTIAL,
    ConfigurationError,
    GateError,
    MissingWeightsError,
    UsageError,
)
from gate.registry import select_plugins, select_techniques
from gate.runs.directory import (
    Run,
    append_journal,
    create_directory,
    open_run,
    plain,
    write_arrays,
    write_json,
)
from gate.runs.parts import drop_parts, has_part, load_part, save_part
from gate.runs.schema import Results
from gate.sample import reasons
from gate.screening.config import ScreenConfig, make_config
from gate.screening.samples import check_inputs
from gate.screening.workers import VANILLA, attempts, choose_workers

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a screening; what was finished is kept in `run`."""

    def __init__(self, run: Path) -> None:
        super().__init__(f"interrupted; finish it with: gate resume {run}")
        self.run = run


@dataclass(frozen=True, repr=False)
class Screening:
    """A finished screening: its run directory and results.json."""

    path: Path
    results: Results

    def __repr__(self) -> str:
        ranked, data = self.results.ranking, self.results.data
        best = f"first: {ranked[0].name}" if ranked else "none ranked"
        return (
            f"Screening of {len(ranked)} techniques on {data.n} images of {data.name}, {best}\n"
            f"{self.path}: winners {', '.join(self.results.winners) or 'none'}; see .table(), .results, .plot()"
        )

    @property
    def exit_code(self) -> int:
        """0, or 7 where a technique failed."""
        return EXIT_PARTIAL if any(s.failed for s in self.results.skipped) else 0

    def winners(self) -> list[str]:
        """Techniques that beat vanilla beyond chance and are no controls, best first."""
        return list(self.results.winners)

    def table(self) -> str:
        """The ranking as plain text."""
        from gate.report.table import ranking_text

        return ranking_text(self.results)

    def plot(self, folder: str | Path | None = None) -> list[Path]:
        """Draw every figure, as PNG and SVG; by default into the run's `figures/`."""
        from gate.report.figures import draw_all

        return draw_all(Run(self.path, self.results), Path(folder) if folder else self.path / "figures")

    def save(self, folder: str | Path) -> Path:
        """Copy the run directory."""
        import shutil

        try:
            return Path(shutil.copytree(self.path, folder))
        except FileExistsError as error:
            raise UsageError(f"{folder} exists already; choose another folder.") from error


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
    try:
        return _screen(chosen, folder, progress, log)
    except GateError:
        _drop_if_empty(folder)
        raise
    except KeyboardInterrupt:
        if not (folder / "run.json").exists():  # nothing to resume from yet
            _drop_if_empty(folder)
        raise


def resume(run: str | Path, *, progress: Progress | None = None, log: Log | None = None) -> Screening:
    """Finish an interrupted run: techniques that were finished are not measured again."""
    folder = Path(run)
    if (folder / "results.json").is_file():
        return Screening(folder, open_run(folder).results)
    try:
        config = make_config(json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"])
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise UsageError(f"{folder} holds no readable run.json, so there is nothing to resume.") from error
    (folder / "parts").mkdir(exist_ok=True)
    return _screen(config, folder, progress or (lambda *_: None), log or (lambda _: None))


def _drop_if_empty(folder: Path) -> None:
    """A run that was refused leaves no directory behind."""
    import shutil

    if not (folder / "journal.jsonl").exists():
        shutil.rmtree(folder, ignore_errors=True)


def _screen(config: ScreenConfig, folder: Path, progress: Progress, log: Log) -> Screening:
    began, asked = time.perf_counter(), config.model_fields_set
    names = select_techniques(config.techniques)
    log(f"loading {config.backbone} to screen {len(names)} technique{'s' if len(names) > 1 else ''}")
    from gate.screening.bench import open_bench  # torch, seconds

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
        f"{str(backbone.dtype).removeprefix('torch.')}), {levels_text(backbone.schedule, config.timesteps)}, "
        f"{config.seeds} noise seeds, batches of {bench.batch_size}"
    )
    environment = _environment(backbone)
    run = {
        "config": config.model_dump(),
        "environment": environment,
        "hashes": {"weights": backbone.fingerprint(), "samples": samples.fingerprint()},
    }
    _same_or_new(folder, run)
    write_json(folder / "run.json", run)
    measured, skipped = _measure_all(bench, names, folder, progress, log)
    from gate.screening.results import assemble  # scipy: with workers, it is there by now

    results, arrays, pictures = assemble(bench, measured, skipped)
    results = {**results, **run, "seconds": time.perf_counter() - began}
    write_arrays(folder / "scores.safetensors", arrays)
    if pictures:
        write_arrays(folder / "pictures.safetensors", pictures)
    write_json(folder / "results.json", Results.model_validate(plain(results)))
    drop_parts(folder)
    screening = Screening(folder, open_run(folder).results)
    try:
        screening.plot()
    except Exception as error:  # the numbers are safe on the disk; a figure can be drawn again
        log(f"the figures could not be drawn ({type(error).__name__}: {error}); try: gate plot {folder}")
    return screening


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
    file = folder / "run.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["hashes"] != run["hashes"]:
        raise ConfigurationError(
            f"The weights or images of {folder} have changed since it began; screen again."
        )


def _measure_all(
    bench: Any, names: list[str], folder: Path, progress: Progress, log: Log
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure vanilla and every technique; finished ones are read back, failures are recorded."""
    from gate.screening.measured import Measured

    everyone = [VANILLA, *names]
    todo = [name for name in everyone if not has_part(folder, name)]
    skipped: dict[str, dict[str, Any]] = {}
    unfetched: set[str] = set()
    rows = len(bench.samples) * len(bench.config.timesteps) * bench.config.seeds
    done = rows * (len(everyone) - len(todo))
    count = _Counter(progress, done, rows * len(everyone))
    try:
        for tried in attempts(bench, todo, choose_workers(bench, len(todo)), count):
            for notice in tried.notices:
                log(notice)
            if tried.measured is not None:
                save_part(folder, tried.name, tried.measured)
                append_journal(folder, name=tried.name, calls=tried.measured.calls, ms=tried.measured.ms)
            elif tried.name == VANILLA:
                raise ConfigurationError(f"The plain backbone could not be measured: {tried.reason}")
            else:
                entry = {"name": tried.name, "reason": tried.reason, "fix": tried.fix, "failed": tried.failed}
                skipped[tried.name] = entry
                unfetched |= {tried.name} if tried.unfetched else set()
                log(f"skipped {tried.name}: {tried.reason}")
                append_journal(folder, **entry)
            done += rows
            count.finished(tried.name, done)
    except KeyboardInterrupt as stop:
        raise Interrupted(folder) from stop
    # nobody held them in memory until here
    parts = ((name, load_part(folder, name, Measured)) for name in everyone)
    measured = {name: part for name, part in parts if part is not None}
    if not any(name != VANILLA for name in measured):
        why = "; ".join(f"{s['name']}: {s['reason']}" for s in list(skipped.values())[:3])
        kind = MissingWeightsError if unfetched and unfetched == set(skipped) else ConfigurationError
        raise kind(f"No technique could be screened. {why}")
    return measured, [skipped[name] for name in names if name in skipped]


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
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
