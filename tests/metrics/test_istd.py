"""ISTD, and the path of noises that it is measured along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gate
from gate.metrics.istd import Istd
from gate.noise_path import interpolated, walk
from gate.registry import create_technique
from gate.technique import Technique
from gate.testing import check_metric


def test_identical_images_and_even_steps_give_nothing() -> None:
    image = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Istd().spread(image.expand(2, 11, 3, 8, 8)), torch.zeros(2))
    even = torch.linspace(0, 1, 11).view(1, 11, 1, 1, 1) * image
    assert float(Istd().spread(even).max()) < 1e-6


def test_it_is_the_standard_deviation_of_the_distances() -> None:
    frames = torch.rand(3, 11, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for row, found in zip(frames.numpy(), Istd().spread(frames).tolist(), strict=True):
        steps = [np.linalg.norm(row[k + 1] - row[k]) for k in range(10)]
        np.testing.assert_allclose(found, np.std(steps))


def test_the_path_begins_and_ends_at_the_noises_and_stays_normal() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 4, 64, 64, generator=g) for _ in range(2))
    assert torch.allclose(interpolated(a, b, 0.0), a, atol=1e-6)
    assert torch.allclose(interpolated(a, b, 1.0), b, atol=1e-6)
    assert 0.97 < float(interpolated(a, b, 0.5).std()) < 1.03
    assert torch.allclose(interpolated(a, a, 0.3), a, atol=1e-6)
    batched = torch.cat([interpolated(a[i : i + 1], b[i : i + 1], 0.3) for i in range(2)])
    assert torch.allclose(interpolated(a, b, 0.3), batched)


def test_a_walk_is_its_own_frames_and_goes_through_the_technique(tiny: Any, scenes: Any) -> None:
    batch = tiny.batch(scenes[:2].samples)
    whole = walk(Technique(), batch, batch.neutral, steps=2, seed=0, points=3)
    assert whole.shape == (2, 3, 3, 64, 64)
    x = interpolated(batch.noise(0), batch.noise(0 + (1 << 40)), 0.5)
    with torch.no_grad():
        x0 = tiny.schedule.ddim_sample(
            x,
            999,
            2,
            lambda x, t: tiny.denoise(batch.request(0, 0).with_(x_t=x, t=t, t_condition=t)).prediction,
        )
        torch.testing.assert_close(whole[:, 1], tiny.decode(x0), rtol=1e-4, atol=1e-5)
    alone = tiny.batch(scenes[1:2].samples)
    single = walk(Technique(), alone, alone.neutral, steps=2, seed=0, points=3)
    torch.testing.assert_close(single[0], whole[1], rtol=1e-4, atol=1e-4)
    freeu = create_technique("freeu")
    with freeu.attach(tiny):
        other = walk(freeu, batch, batch.neutral, steps=2, seed=0, points=3)
    assert not torch.allclose(other, whole)


def test_it_keeps_the_contract() -> None:
    report = check_metric("istd")
    assert report.ok, str(report)


def test_a_screening_measures_it_beside_reconstructions(tmp_path: Path) -> None:
    out = tmp_path / "run"
    gate.screen(
        techniques="freeu,cleandift", samples=8, timesteps=(50,), seeds=1, layers="mid", metrics="istd,lipschitz,eps",
        probes="", image_samples=2, image_steps=1, output=str(out),
    )  # fmt: skip
    rows = {r["name"]: r for r in json.loads((out / "results.json").read_text())["ranking"]}
    assert rows["freeu"]["images"]["istd"]["n"] == 2 == rows["cleandift"]["images"]["istd"]["n"]
    assert rows["freeu"]["metrics"]["lipschitz"]["n"] == 8
    assert rows["freeu"]["images"]["istd"]["value"] != 0
