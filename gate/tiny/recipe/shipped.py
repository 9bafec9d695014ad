"""The companions that ship beside the tiny pipeline: taken over from fits, measured, and entered in the card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gate.adapters.networks import FOLDER
from gate.errors import UsageError
from gate.measure import share_removed
from gate.ranking.statistics import Interval, paired_interval

TABLE_START, TABLE_END = "<!-- companions -->", "<!-- end of companions -->"
KEPT = ("*.safetensors", "config.json", "fit.json", "image_encoder/*")
SAMPLES, TIMESTEP, SEEDS = 200, 300, 2


@dataclass(frozen=True)
class Measured:
    """What is measured of a companion: the technique that uses it, and the data set it is for."""

    technique: str
    data: str


MEASURED = {
    "controlnet-canny": Measured("controlnet", "scenes-held-out"),
    "t2i-adapter-canny": Measured("t2i-adapter", "scenes-held-out"),
    "ip-adapter": Measured("ip-adapter", "scenes-held-out"),
    "lora-sketches": Measured("lora", "sketches-held-out"),
    "lora-sketches/over-fitted": Measured("lora-over-fitted", "sketches-held-out"),
    "smooth-lora": Measured("smooth-lora", "scenes-held-out"),
    "info-latent": Measured("info-latent", "scenes-held-out"),
    "textual-inversion-sketches": Measured("textual-inversion", "sketches-held-out"),
}


# What a fit adds at tiny's 4x4 and 2x2 levels changes no prediction (ControlNet: the same x0 error to three digits).
# But Adam's steps are as long where a gradient is pure noise, so parameters there wander, and spoil the features.
IDLE = {
    "controlnet": r"controlnet_down_blocks\.([6-9]|1[01])\.|controlnet_mid_block\.",
    "ip-adapter": r"ip_adapter\.(9|11|13|15|17|31)\.to_v_ip\.",  # down_blocks.2, up_blocks.1, mid_block
    "t2i-adapter": r"adapter\.body\.[23]\.(in_conv|resnets\.\d\.block2)\.",
    "lora": r"unet\.(down_blocks\.[23]|mid_block|up_blocks\.[01])\..*\.lora_B\.",
}


def silenced(kind: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a fit with what it adds to idle levels set to zero."""
    pattern = re.compile(IDLE[kind]) if kind in IDLE else None
    return {k: v * 0 if pattern and pattern.match(k) else v for k, v in state.items()}


def adopt(fit: Path, weights: Path, *, over_fitted: Path | None = None) -> Path:
    """Copy what a technique needs of a folder of `gate fit`, in half precision, idle levels silenced; its name stays.

    over_fitted: a longer fit of the same, whose last step goes along.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if not (fit / "card.md").is_file():
        raise UsageError(f"{fit} is not a finished fit.")
    kind = json.loads((fit / "fit.json").read_text(encoding="utf-8"))["config"]["name"]
    target = weights.parent / FOLDER / fit.name
    shutil.rmtree(target, ignore_errors=True)
    wanted = [file for pattern in KEPT for file in fit.glob(pattern)]
    sources = [(file, file.relative_to(fit)) for file in wanted]
    if over_fitted:
        pairs = [("over-fitted/*.safetensors", "over-fitted"), ("fit.json", "over-fitted")]
        sources += [
            (file, Path(to) / file.name) for pattern, to in pairs for file in over_fitted.glob(pattern)
        ]
    for file, to in sources:
        copy = target / to
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as stored:
                held = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no mapping
                notes = stored.metadata()
            held = silenced(kind, held)
            save_file({k: v.half() if v.is_floating_point() else v for k, v in held.items()}, copy, notes)
        else:
            shutil.copyfile(file, copy)
    return target


@torch.inference_mode()
def x0_error_removed(technique_name: str, data: str, n: int = SAMPLES) -> Interval:
    """Share of vanilla's squared x0_hat error that is gone at t = 300, neutral prompt, two noises each; paired."""
    from gate.backbones import load_backbone
    from gate.data import load_data
    from gate.passes import single_pass
    from gate.registry import create_technique
    from gate.technique import Technique

    backbone = load_backbone("tiny", device="cpu")
    samples = load_data(data, n=n, size=backbone.image_size, seed=1)
    errors = []
    for technique in (create_technique(technique_name), Technique()):
        technique.fit(backbone, samples)
        found = np.zeros((n, SEEDS))
        with technique.attach(backbone):
            for i in range(0, n, 25):
                batch = backbone.batch(samples[i : i + 25].samples, everyone=samples)
                given = technique.condition(batch.neutral, batch)
                for seed in range(SEEDS):
                    x0 = single_pass(technique, batch.request(TIMESTEP, seed, given), ()).x0
                    found[i : i + 25, seed] = (x0 - batch.x0).square().mean(dim=(1, 2, 3)).numpy()
        errors.append(found.mean(axis=1)[:, None])
    ours, vanilla = errors
    return paired_interval(lambda counts: share_removed(counts @ ours, counts @ vanilla), n, seed=0)


def measure(weights: Path, to: Path) -> dict[str, Interval]:
    """Measure every companion that is there; writes `to`/companions.json and the table in `to`/card.md."""
    folder = weights.parent / FOLDER
    figures = {
        name: x0_error_removed(what.technique, what.data)
        for name, what in MEASURED.items()
        if (folder / name).is_dir()
    }
    clean = json.loads((folder / "cleandift" / "fit.json").read_text(encoding="utf-8"))
    gain = clean["kept"]["held_out_gain"]
    report = {
        "schema_version": 1,
        "timestep": TIMESTEP,
        "seeds": SEEDS,
        "x0_error_removed": {name: asdict(figure) for name, figure in figures.items()},
        "misalignment_removed": {"cleandift": gain},
        "bytes": {path.name: size(path) for path in sorted(folder.iterdir()) if path.is_dir()},
    }
    (to / "companions.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    rows = [
        "| companion | of vanilla's x0_hat error at t = 300, gone [95 %] | n | on | MB |",
        "|---|---|---|---|---|",
    ]
    for name, figure in figures.items():
        rows.append(
            f"| `{name}` | {_percent(figure)} | {figure.n} | `{MEASURED[name].data}` | "
            f"{size(folder / name) / 1e6:.1f} |"
        )
    rows.append(
        f"| `cleandift` | (of the misalignment with noisy features:) {_percent(Interval(**gain))} | {gain['n']} | "
        f"`{clean['data']['name']}` | {size(folder / 'cleandift') / 1e6:.1f} |"
    )
    card = to / "card.md"
    head, _, rest = card.read_text(encoding="utf-8").partition(TABLE_START)
    tail = rest.partition(TABLE_END)[2]
    card.write_text("\n".join([head + TABLE_START, "", *rows, "", TABLE_END]) + tail, encoding="utf-8")
    return figures


def size(folder: Path) -> int:
    """Bytes of its weights."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _percent(value: Interval) -> str:
    return f"{100 * value.value:+.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"
