"""The tiny pipeline loads as Stable Diffusion does, and its training can be stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gate.tiny import WEIGHTS
from gate.tiny.models import TOKENS, new_vae
from gate.tiny.pipeline import load_pipeline, weights_size
from gate.tiny.recipe.evaluate import caption_matters
from gate.tiny.recipe.judge import as_images, mean_of, scenes, share
from gate.tiny.recipe.progress import Schedule
from gate.tiny.recipe.train import CAPTIONS, LatentCache, Recipe, draw_batch, normalise_latents, train
from gate.tiny.recipe.train_vae import psnr
from gate.tiny.tokens import new_tokenizer, tokenise, words


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline()


def test_topology_is_that_of_stable_diffusion(pipeline: Any) -> None:
    names = dict(pipeline.unet.named_modules())
    for block in (
        "down_blocks.0",
        "down_blocks.1",
        "down_blocks.2",
        "up_blocks.1",
        "up_blocks.2",
        "up_blocks.3",
    ):
        assert f"{block}.attentions.1" in names
    assert "up_blocks.3.attentions.2" in names
    assert "mid_block.attentions.0" in names
    assert len(pipeline.unet.down_blocks) == len(pipeline.unet.up_blocks) == 4
    assert 5e6 <= sum(p.numel() for p in pipeline.unet.parameters()) <= 12e6


def test_the_schedule_is_that_of_stable_diffusion(pipeline: Any) -> None:
    config = pipeline.scheduler.config
    assert config.beta_schedule == "scaled_linear"
    assert config.prediction_type == "epsilon"
    assert (config.beta_start, config.beta_end, config.num_train_timesteps) == (0.00085, 0.012, 1000)


def test_weights_are_small() -> None:
    assert weights_size(WEIGHTS) <= 30e6


@torch.inference_mode()
def test_the_autoencoder_reconstructs_held_out_objects(pipeline: Any) -> None:
    images = as_images(scenes("held-out", 16))
    latent = pipeline.vae.encode(images).latent_dist.mean
    assert latent.shape == (16, 4, 16, 16)
    assert psnr(pipeline.vae.decode(latent).sample.clamp(-1, 1), images).mean() >= 25


@torch.inference_mode()
def test_scaled_latents_have_about_unit_variance(pipeline: Any) -> None:
    latent = pipeline.vae.encode(as_images(scenes("trained", 32))).latent_dist.mean
    std = (latent * pipeline.vae.config.scaling_factor).std(dim=(0, 2, 3))
    assert ((std > 0.7) & (std < 1.4)).all()


@torch.inference_mode()
def test_own_caption_beats_another(pipeline: Any) -> None:
    assert caption_matters(pipeline, n=24).value >= 0.75


def test_every_word_of_a_caption_is_one_token_and_any_text_tokenises() -> None:
    tokenizer = new_tokenizer()
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word
    assert len(tokenizer("Zürich, 42 blorps 🦊!").input_ids) > 3
    assert tokenise(tokenizer, ["", "a fox"]).shape == (2, TOKENS)


def test_no_caption_is_cut() -> None:
    tokenizer = new_tokenizer()
    for objects in ("trained", "held-out"):
        for scene in scenes(objects, 200, count=3):  # type: ignore[arg-type]
            assert len(tokenizer(scene.caption).input_ids) <= TOKENS, scene.caption


def _cache() -> LatentCache:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 500, (6, CAPTIONS, TOKENS), generator=generator)
    return LatentCache(torch.randn(6, 4, 16, 16, generator=generator), tokens, tokens[0, 0])


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = Recipe(steps=2, batch=2, warm_up=1)
    whole = train(recipe, _cache(), tmp_path / "whole")
    train(recipe, _cache(), tmp_path / "parts", stop_at=0.0)  # stops after one step
    resumed = train(recipe, _cache(), tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_batches_are_functions_of_the_step() -> None:
    recipe = Recipe(batch=4)
    one, same, next_one = (draw_batch(_cache(), recipe, step) for step in (3, 3, 4))
    assert torch.equal(one.eps, same.eps)
    assert not torch.equal(one.eps, next_one.eps)
    assert one.t.tolist() == sorted(one.t.tolist())
    assert one.t.min() >= 0
    assert one.t.max() <= 999


@torch.no_grad()
def test_normalising_latents_changes_no_reconstruction() -> None:
    torch.manual_seed(0)
    plain, normalised = new_vae().eval(), new_vae().eval()
    normalised.load_state_dict(plain.state_dict())
    mean, std = torch.tensor([0.5, -1.0, 0.1, 2.0]), torch.tensor([0.1, 2.0, 1.0, 5.0])
    normalise_latents(normalised, mean, std)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    before, after = (vae.encode(images).latent_dist for vae in (plain, normalised))
    shape = (1, 4, 1, 1)
    torch.testing.assert_close(
        after.mean, (before.mean - mean.view(shape)) / std.view(shape), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(after.std, before.std / std.view(shape), atol=1e-4, rtol=1e-4)
    a, b = plain.decode(before.mean).sample, normalised.decode(after.mean).sample
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_learning_rate_warms_up_stays_and_falls() -> None:
    schedule = Schedule(rate=1.0, warm_up=10, steps=100, decay=0.2)
    assert schedule(1) == pytest.approx(0.1)
    assert schedule(50) == 1.0
    assert schedule(90) == pytest.approx(11 / 20)
    assert schedule(100) == pytest.approx(0.05)


def test_intervals_by_hand() -> None:
    wilson = share(9, 10, "share")
    assert (wilson.low, wilson.high) == (pytest.approx(0.5958, abs=1e-3), pytest.approx(0.9821, abs=1e-3))
    normal = mean_of(np.array([1.0, 3.0]), "dB")
    assert normal.value == 2.0
    assert normal.high - normal.value == pytest.approx(1.96, abs=1e-3)
