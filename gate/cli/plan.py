"""`gate screen --dry-run`: what would be measured and what it costs, as techniques declare it; nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from gate.cli.output import Format, echo_rows, to_json

if TYPE_CHECKING:
    from gate.screening.config import ScreenConfig


def print_plan(config: ScreenConfig, format: Format) -> None:
    """A row per technique, vanilla first, and the sums. Raises UsageError for names and paths that lead nowhere."""
    from gate.registry import create_technique, select_techniques
    from gate.screening.config import USUAL
    from gate.screening.samples import check_inputs, expected
    from gate.technique import Technique

    check_inputs(config)
    images, data = expected(config)
    levels: tuple[float, ...] = config.alpha_bar or config.sigma or config.timesteps or USUAL
    names = select_techniques(config.techniques)
    rows = [_row("vanilla", Technique(), config, images, len(levels))]
    rows += [_row(name, create_technique(name), config, images, len(levels)) for name in names]
    total = {key: sum(row[key] for row in rows) for key in ("passes", "calls")}
    if format is Format.json:
        typer.echo(to_json({"images": images, "data": data, "techniques": rows, **total}))
        return
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "technique": lambda r: r["name"],
        "calls/image": lambda r: f"{r['calls_per_image']:g}",
        "passes": lambda r: str(r["passes"]),
        "calls in all": lambda r: str(r["calls"]),
        "needs": lambda r: ", ".join(r["needs"]),
    }
    echo_rows(rows, columns, format)
    kind = "alpha_bar" if config.alpha_bar else "sigma" if config.sigma else "timestep"
    levels_said = f"{kind} {', '.join(f'{level:g}' for level in levels)}"
    if not (config.alpha_bar or config.sigma or config.timesteps):
        levels_said = f"{' and '.join(f'{level:.0%}' for level in levels)} of the schedule"
    lines = [
        f"{len(names)} technique{'s' if len(names) > 1 else ''} and vanilla on {config.backbone}: {images} images of "
        f"{data}, {levels_said}, {config.seeds} noise seeds.",
        f"{total['passes']} passes of one image, {total['calls']} calls of the denoiser as declared; what several "
        "techniques call is called once. Nothing was measured or written.",
    ]
    for line in lines:
        typer.echo(line, err=format is Format.csv)


def _row(name: str, technique: Any, config: ScreenConfig, images: int, levels: int) -> dict[str, Any]:
    """Passes: the clean one of an image, and one per timestep and seed. Calls: theirs and those of reconstructions."""
    cost = technique.cost
    noised = images * levels * (1 if technique.seedless else config.seeds)
    drawn = min(config.image_samples, images) * config.image_steps
    calls = images * (1 + cost.per_image) + noised * cost.per_pass + drawn * (cost.per_pass - cost.start)
    return {
        "name": name,
        "calls_per_image": cost.total,
        "passes": images + noised,
        "calls": round(calls),
        "needs": sorted(technique.needs),
    }
