"""What a fit leaves beside its weights: fit.json, the losses and samples as pictures, and a card."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gate.adapters.formats import OVER_FITTED
from gate.errors import UsageError
from gate.measure import share_removed
from gate.names import parse_name
from gate.ranking.statistics import Interval, paired_interval
from gate.runs.directory import write_json
from gate.version import __version__

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.fit.course import Course, Material
    from gate.fit.trainer import Trainer

Predict = Callable[[torch.Tensor, torch.Tensor, list[str]], torch.Tensor]
SHEET_STEPS = 20
GUIDANCE = 3.0
TILE = 128  # px


def write_report(
    trainer: Trainer, backbone: Backbone, material: Material, config: FitConfig, course: Course, folder: Path
) -> dict[str, Any]:
    """Write everything; returns what fit.json holds."""
    kept, last = _gain(course, course.best, config.seed), _gain(course, course.step, config.seed)
    report = {
        "schema_version": 1,
        "config": config.facts(),
        "gate_version": __version__,
        "versions": {p: version(p) for p in ("torch", "diffusers", "peft", "transformers")},
        "device": str(backbone.device),
        "backbone": {"name": backbone.name, "weights": backbone.fingerprint()},
        "data": {
            "name": material.samples.name,
            "trained": len(material.trained),
            "held_out": len(material.held_out),
            "samples": material.samples.fingerprint(),
        },
        "trainer": trainer.facts(),
        "measure": trainer.measure,
        "steps": course.step,
        "kept": {"step": course.best, "file": ".", "held_out_gain": vars(kept)},
        "last": {"step": course.step, "file": OVER_FITTED, "held_out_gain": vars(last)},
        "over_fitted": last.value < kept.value,
        "losses": course.losses,
        "held_out": {step: float(np.mean(errors)) for step, errors in course.held_out.items()},
        "seconds": round(course.seconds, 1),
    }
    write_json(folder / "fit.json", report)
    _draw(report, folder / "losses.png")
    if config.sheet and trainer.generates:
        sheet(trainer, backbone, material, config, folder / "samples.png")
    (folder / "card.md").write_text(card(report, config, folder), encoding="utf-8")
    return report


def _gain(course: Course, step: int, seed: int) -> Interval:
    """Share of the plain backbone's held-out loss that is gone, paired over the held-out images."""
    before, after = (np.array(course.held_out[k])[:, None] for k in (0, step))
    return paired_interval(
        lambda counts: share_removed(counts @ after, counts @ before), len(before), seed=seed
    )


def _draw(report: dict[str, Any], path: Path) -> None:
    from gate.report.figures.look import BLUE, DPI, GREY, VERMILION, new_figure, styled

    with styled():
        figure = new_figure(6.0, 3.2)
        axes = figure.subplots()
        axes.plot(list(report["losses"]), list(report["losses"].values()), color=GREY, label="training")
        held_out = report["held_out"]
        label = f"held out, n = {report['data']['held_out']}"
        axes.plot(list(held_out), list(held_out.values()), color=BLUE, marker="o", markersize=3, label=label)
        axes.axvline(report["kept"]["step"], color=VERMILION, linewidth=1, label="kept")
        axes.set(
            xlabel="step",
            ylabel=f"{report['measure']} (lower is better)",
            title=f"Fit of {report['config']['name']}",
        )
        axes.legend()
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


@torch.no_grad()
def sheet(trainer: Trainer, backbone: Backbone, material: Material, config: FitConfig, path: Path) -> None:
    """Rows: held-out images, the plain backbone's samples of their captions, the fitted one's, from the same noise."""
    from PIL import Image

    rows = list(material.held_out[: config.sheet])
    texts = [material.captions[row][-1] for row in rows]
    shape = tuple(material.x0.shape[1:])
    noise = torch.stack([
        torch.randn(shape, generator=torch.Generator().manual_seed(config.seed + k)) for k in range(len(rows))
    ]).to(material.x0)  # fmt: skip
    plain = _sample(backbone, noise, texts, trainer.plain)
    fitted = _sample(backbone, noise, texts, lambda x, t, c: trainer.predict(x, trainer.told(t), c, rows))
    images = [np.stack([material.samples[row].image for row in rows]), plain, fitted]
    canvas = Image.new("RGB", (TILE * len(rows), TILE * len(images)), "white")
    for y, line in enumerate(images):
        for x, image in enumerate(line):
            canvas.paste(Image.fromarray(image).resize((TILE, TILE)), (x * TILE, y * TILE))
    canvas.save(path, optimize=True)


def _sample(backbone: Backbone, x: torch.Tensor, texts: list[str], predict: Predict) -> Any:
    """(b, H, W, 3) uint8 by deterministic DDIM with classifier-free guidance."""
    empty = [""] * len(texts)

    def guided(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        strong, weak = predict(x_t, t, texts), predict(x_t, t, empty)
        return weak + GUIDANCE * (strong - weak)

    x0 = backbone.schedule.ddim_sample(x, len(backbone.schedule) - 1, SHEET_STEPS, guided)
    return (backbone.decode(x0).cpu().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def card(report: dict[str, Any], config: FitConfig, folder: Path) -> str:
    """The model card, Markdown."""
    kept, last, data = report["kept"], report["last"], report["data"]
    over = (
        f"`{OVER_FITTED}/` is over-fitted: its held-out error is above that of the kept weights."
        if report["over_fitted"]
        else f"`{OVER_FITTED}/` is not over-fitted yet: train longer for the paper's second LoRA."
    )
    settings = ", ".join(f"{k} {v:g}" for k, v in report["trainer"].items())
    return f"""# {config.name} for `{report["backbone"]["name"]}`

Fitted by `{fit_command(config)}` in {report["seconds"]:.0f} s on {report["device"]}
(gate {report["gate_version"]}, {", ".join(f"{k} {v}" for k, v in report["versions"].items())}).

Data: {data["name"]}, {data["trained"]} images, {data["held_out"]} more held out. Backbone weights
`{report["backbone"]["weights"]}`. Settings: {settings}.

| weights | step | held-out {report["measure"]} removed [95 %] | n |
|---|---|---|---|
| kept: the least held-out error | {kept["step"]} | {_percent(kept["held_out_gain"])} | {data["held_out"]} |
| `{OVER_FITTED}/`: the last step | {last["step"]} | {_percent(last["held_out_gain"])} | {data["held_out"]} |

{over}

![losses](losses.png)

{"![held-out images, the plain backbone, the fitted one](samples.png)" if (folder / "samples.png").exists() else ""}
"""


def fit_command(config: FitConfig) -> str:
    """The command that fits this again, as a shell takes it: whatever is not the default."""
    given = config.model_dump(exclude_defaults=True, exclude={"name"})
    flags = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["gate", "fit", config.name, *flags])


def screen_command(config: FitConfig) -> str:
    """The command that screens what was fitted, on the data that it was fitted to."""
    weights = config.output
    try:
        plain = parse_name(f"x[weights={weights}]")[1] == {"weights": weights}
    except UsageError:  # a comma or a bracket in it
        plain = False
    weights = weights if plain else repr(weights)
    name = f"{config.name}[weights={weights}]"
    if config.shared_below:
        name = f"shared-timestep[threshold={config.shared_below},intervals={config.shared_intervals}]+{name}"
    given = config.model_dump(exclude_defaults=True, include={"images", "captions", "data", "backbone"})
    flags = [text for key, value in given.items() for text in (f"--{key}", value)]
    return shlex.join(["gate", "screen", *flags, "--techniques", f"{name},prompt+{name}"])


def _percent(gain: dict[str, Any]) -> str:
    return f"{100 * gain['value']:+.2f} % [{100 * gain['low']:.2f}, {100 * gain['high']:.2f}]"
