"""COW: what is inverted, what is disturbed, and what the mask holds fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipelines import build

import gate
from gate.data import load_data
from gate.errors import UsageError
from gate.passes import single_pass
from gate.registry import create_technique
from gate.request import Batch
from gate.technique import Technique
from gate.techniques import cow
from gate.techniques.cow import Cow, pasted
from gate.testing import check_technique

LAYERS = ("mid", "up1", "up3")


def test_no_cycles_and_a_full_mask_are_ddim_inversion(batch: Batch) -> None:
    with torch.no_grad():
        ours = single_pass(Cow(cycles=0, mask="everywhere", inversion=3), batch.request(300, 0), LAYERS)
        theirs = single_pass(create_technique("ddim-inversion", steps=3), batch.request(300, 0), LAYERS)
    for layer in LAYERS:
        assert torch.equal(ours.features[layer], theirs.features[layer])


def test_no_cycles_and_no_mask_are_vanilla(batch: Batch) -> None:
    request = batch.request(50, 0)
    assert Cow(cycles=0, mask="nowhere").start(request) is request
    with torch.no_grad():
        moved = Cow(cycles=0, mask="edges", inversion=2).start(request)
        plain = single_pass(Technique(), moved, LAYERS)  # vanilla from that latent
        ours = single_pass(Cow(cycles=0, mask="edges", inversion=2), request, LAYERS)
    assert torch.equal(ours.features["up1"], plain.features["up1"])


def test_masked_latents_are_the_stored_ones_after_every_replacement(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    technique, seen = Cow(cycles=2, construct=3, inversion=2), []
    real = cow.pasted

    def spied(x, kept, level, mask):  # type: ignore[no-untyped-def]
        made = real(x, kept, level, mask)
        seen.append((made, kept[level], mask, x))
        return made

    monkeypatch.setattr(cow, "pasted", spied)
    with torch.no_grad():
        done = technique.start(batch.request(50, 0))
    assert len(seen) == 1 + 2 * (1 + 3)  # the start, and in each cycle the jump and three steps
    for made, kept, mask, x in seen:
        inside = mask.expand_as(x) > 0
        assert torch.equal(made[inside], kept[inside]) and torch.equal(made[~inside], x[~inside])
        assert inside.any() and not inside.all()
    assert torch.equal(done.x_t, seen[-1][0])
    torch.testing.assert_close(
        batch.backbone.schedule.add_noise(batch.x0, done.eps, done.t), done.x_t, rtol=1e-4, atol=1e-4
    )


def test_the_mask_is_the_edges_and_grows_with_dilation(batch: Batch) -> None:
    thin, thick = (float(Cow(dilation=d).mask_of(batch).mean()) for d in (0, 2))
    assert 0 < thin < thick < 1
    assert float(Cow(mask="everywhere").mask_of(batch).min()) == 1
    assert float(Cow(mask="nowhere").mask_of(batch).max()) == 0
    x = torch.zeros(1, 4, 2, 2)
    assert torch.equal(pasted(x, [], 0, torch.ones(1, 1, 2, 2)), x)


def test_without_a_mask_cycles_alone_move_the_latent_and_eta_0_draws_one_noise(batch: Batch) -> None:
    request = batch.request(300, 0)
    with torch.no_grad():
        quiet, loud = (Cow(mask="nowhere", eta=eta).start(request).x_t for eta in (0.0, 1.0))
        again = Cow(mask="nowhere", eta=1.0).start(request).x_t
    assert torch.equal(loud, again) and not torch.allclose(quiet, loud)
    assert not torch.allclose(quiet, request.x_t)


def test_the_window_ends_with_the_schedule(batch: Batch) -> None:
    levels = Cow(window=20, construct=2).levels(batch.request(50, 0))
    assert [int(t[0]) for t in levels] == [50, 60, 70]
    assert [int(t[0]) for t in Cow().levels(batch.request(999, 0))] == [999] * 3


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_it_serves_sdxl_and_a_flow_transformer(family: str, tmp_path: Path) -> None:
    backbone = gate.load_backbone(str(build(family, tmp_path)), device="cpu", dtype="float32")
    samples = load_data("scenes-held-out", n=3, size=backbone.image_size)
    report = check_technique("cow[inversion=1,cycles=1,construct=1]", backbone, samples)
    assert report.ok, str(report)


@pytest.mark.parametrize("settings", ["window=0", "eta=2", "cycles=-1", "mask='edge'"])
def test_impossible_settings_are_refused(settings: str) -> None:
    with pytest.raises(UsageError, match="cannot be set up"):
        create_technique(f"cow[{settings}]")
