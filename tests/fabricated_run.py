"""A complete run directory made of random numbers, for the tests of what reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gate.runs.directory import Run, open_run, write_arrays, write_sealed
from gate.runs.schema import SCHEMA_VERSION
from gate.screening.config import ScreenConfig

NAMES = {  # name -> (suppression, probe gain, calls per pass, control, leak)
    "prompt+noise-ensemble": (0.29, 0.21, 8, False, ""),
    "noise-ensemble": (0.27, 0.18, 8, False, ""),
    "prompt+guidance-pag": (0.12, 0.15, 3, False, ""),
    "timestep-ensemble": (0.13, 0.08, 3, False, ""),
    "ddim-inversion": (0.31, -0.02, 9, False, "starts from the image's own latent"),
    "prompt": (0.02, 0.11, 1, False, ""),
    "prompt-search": (0.018, 0.10, 1, False, ""),
    "freeu[b1=1.2,s1=0.9]": (0.03, 0.05, 1, False, ""),
    "generic-prompt": (0.01, 0.01, 1, False, ""),
    "shared-timestep": (-0.002, 0.004, 1, False, ""),
    "guidance-fdg": (-0.04, 0.01, 3, False, ""),
    "guidance-slg": (-0.02, -0.05, 3, False, ""),
    "shuffled-prompt": (-0.03, -0.08, 1, True, ""),
    "guidance-cfg": (-0.35, -0.12, 3, True, ""),
    "freeu": (-1.9, -0.6, 1, False, ""),
}
METRICS = (
    "laplacian",
    "laplacian@own",
    "laplacian-normalised",
    "laplacian-normalised@own",
    "cosine@own",
    "cka@own",
)


def facts(name: str) -> tuple[float, float, int, bool, str]:
    """NAMES of a name, with settings or without."""
    return NAMES[name] if name in NAMES else NAMES[name.partition("[")[0]]


def fabricate(
    folder: Path,
    *,
    names: tuple[str, ...] = tuple(NAMES),
    probes: bool = True,
    images: int = 4,
    n: int = 24,
    layers: tuple[str, ...] = ("up0", "up1", "up2", "up3"),
    metrics: tuple[str, ...] = METRICS,
    side: int = 32,
    timesteps: tuple[int, ...] = (50, 300),
) -> Run:
    """Write a run of these techniques into `folder` and open it. images: 0 makes no reconstructions.

    A name with settings that is not in NAMES has the numbers of the name without. Pictures of a leak are grey.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    seeds, k = (0, 1), 5
    arrays: dict[str, Any] = {}
    share = np.array([0.0, *(facts(m)[0] for m in names)])
    base = rng.gamma(5, 0.1, (len(timesteps), len(seeds), len(layers), n))
    depth = (
        np.linspace(1.6, 0.4, len(layers))[None, None, :, None]
        * np.array([0.6, 1.4])[: len(timesteps), None, None, None]
    )
    for metric in metrics:
        wobble = rng.normal(0, 0.02, (len(share), *base.shape))
        wobble[0] = 0
        values = base * (1 - share[:, None, None, None, None] * depth + wobble)
        arrays[f"shift/{metric}"] = values.astype(np.float32)
    arrays["prediction/eps"] = (base[:, :, 0] * (1 - 0.01 * share[:, None, None, None])).astype(np.float32)
    arrays["feature-scale"] = np.ones((len(share), len(layers)), np.float32)
    if probes:
        counts = rng.integers(0, 9, (len(share), len(timesteps), len(seeds), n, k, k))
        arrays["probe/pixel-linear"] = counts.astype(np.int16)
    if images:
        arrays["image/image"] = rng.random((len(share), images)).astype(np.float32)
    results = _results(names, probes, images, n, layers, metrics, timesteps, seeds, k)
    write_sealed(folder / "run.json", {"config": results["config"], "hashes": dict(results["hashes"])})
    pictures = _pictures(rng, names, images, side)
    results["hashes"]["scores"] = write_arrays(folder / "scores.safetensors", arrays)
    results["hashes"]["pictures"] = write_arrays(folder / "pictures.safetensors", pictures)
    write_sealed(folder / "results.json", results)
    return open_run(folder)


def _pictures(rng: np.random.Generator, names: tuple[str, ...], images: int, side: int) -> dict[str, Any]:
    count = 1 + len(names)
    y, x = np.mgrid[0:side, 0:side] / side
    clean = np.stack([np.stack([(x + i / 5) % 1, y, (x * y + i / 7) % 1], -1) for i in range(max(images, 2))])
    noisy = clean[None] + rng.normal(0, 0.12, (count, *clean.shape))
    grid = clean[:2, :: side // 8, :: side // 8]
    pictures = {
        "pca": np.clip(grid[None] + rng.normal(0, 0.15, (count, *grid.shape)), 0, 1).astype(np.float32),
        "pca_input": grid.astype(np.float32),
        "pca_image": (clean[:2] * 255).astype(np.uint8),
    }
    if images:
        pictures["input"] = (clean[:images] * 255).astype(np.uint8)
        pictures["reconstruction"] = (np.clip(noisy[:, :images], 0, 1) * 255).astype(np.uint8)
        pictures["reconstruction"][[1 + i for i, name in enumerate(names) if facts(name)[4]]] = 128
    return pictures


def _results(
    names: tuple[str, ...],
    probes: bool,
    images: int,
    n: int,
    layers: tuple[str, ...],
    metrics: tuple[str, ...],
    timesteps: tuple[int, ...],
    seeds: tuple[int, ...],
    k: int,
) -> dict[str, Any]:
    rows = sorted((_row(m, probes, images, n, metrics) for m in names), key=lambda r: -r["score"])
    for i, row in enumerate(rows):
        row["rank"] = i + 1
        tied = [
            r
            for r in rows
            if r is not row and r["ci_low"] <= row["ci_high"] and row["ci_low"] <= r["ci_high"]
        ]
        row["tied_with"] = [r["name"] for r in tied]
        row["letters"] = "ab" if tied else "c"
    winners = [r["name"] for r in rows if r["verdict"] == "better" and not r["negative_control"]][:3]
    used = [m for m in metrics if m.endswith("@own") and m != "laplacian@own"] or list(metrics)
    return {
        "schema_version": SCHEMA_VERSION,
        "gate_version": "0.1.0",
        "created": "2025-01-01T00:00:00+0000",
        "config": ScreenConfig().model_dump(),
        "environment": {"device": "cpu", "dtype": "float32"},
        "hashes": {"weights": "0", "samples": "0"},
        "seeds": list(seeds),
        "axes": {
            "technique": ["vanilla", *names],
            "sample": [f"{i:016x}" for i in range(n)],
            "timestep": list(timesteps),
            "alpha_bar": [0.9, 0.5][: len(timesteps)],
            "sigma": [0.3162, 0.7071][: len(timesteps)],
            "seed": list(seeds),
            "layer": list(layers),
            "picture_layer": layers[-1],
            "image_sample": [f"{i:016x}" for i in range(images)],
            "classes": [f"class {i}" for i in range(k)] if probes else [],
            "mask_classes": [f"mask {i}" for i in range(k)] if probes else [],
        },
        "data": {"name": "scenes-held-out", "n": n, "skipped": [["broken.png", "it is truncated"]]},
        "basis": "shift and probes" if probes else "shift only",
        "score": {
            "metrics": [*used, "eps"],
            "probes": ["pixel-linear"] if probes else [],
            "weights": {"suppression": 0.5, "probe": 0.5},
            "confidence": 0.95,
        },
        "ranking": rows,
        "skipped": [
            {"name": "lora", "reason": "lora needs training", "fix": "Run: gate fit lora", "failed": False},
            {"name": "odd", "reason": "ValueError: odd", "fix": "Run: gate check 'odd'", "failed": True},
        ],
        "winners": winners,
        "verdict": [
            "Use noise-ensemble: +22.5 % [18.0, 27.0], p = 0.01, 8 calls a pass.",
            "Its control lost.",
        ],
        "notes": ["'cka@own' and 'eps' order the techniques differently (Kendall tau 0.31)."],
        "vanilla": {"metrics": {}, "probes": {}, "ms_per_image": 4.04},
        "seconds": 51.2,
    }


def _row(name: str, probes: bool, images: int, n: int, metrics: tuple[str, ...]) -> dict[str, Any]:
    shift, gain, calls, control, leak = facts(name)
    score = (shift + gain) / 2 if probes else shift
    half = 0.008 + abs(score) * 0.12

    def triple(key: str, value: float) -> dict[str, float | None]:
        shown = None if key == "probe_gain" and not probes else value
        low, high = (None, None) if shown is None else (value - 1.3 * half, value + 1.3 * half)
        return {key: shown, f"{key}_low": low, f"{key}_high": high}

    bounds = {"ci_low": score - half, "ci_high": score + half}
    image = {"value": shift / 2, "ci_low": shift / 2 - 0.1, "ci_high": shift / 2 + 0.1, "n": images}
    return {
        "name": name,
        "summary": f"What {name} does.",
        "rank": 0,
        "score": score,
        **bounds,
        "n": n,
        "p": 0.005 if abs(score) > half else 0.4,
        "p_holm": 0.01 if abs(score) > half else 0.5,
        "verdict": ("better" if score > 0 else "worse") if abs(score) > half else "none",
        **triple("suppression", shift),
        **triple("probe_gain", gain),
        "metrics": {m: {"value": shift, **bounds, "n": n} for m in metrics},
        "probes": {"pixel-linear": {"value": gain, **bounds, "n": n}} if probes else {},
        "images": {"image": image} if images else {},
        "feature_scale": 1.0,
        "cost": {
            "calls": float(calls),
            "per_image": 0.0,
            "per_pass": float(calls),
            "ms_per_image": 4.1 * calls,
            "fit_seconds": 0.0,
        },
        "tied_with": [],
        "negative_control": control,
        "leak": leak,
        "settings": {},
        "source": "",
    }
