"""CleanDIFT's recipe: a head per layer that knows t and starts as the identity, is dropped, and fits users' images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gate.adapters.formats import CLEANDIFT_FILE
from gate.backbone import Backbone
from gate.backbones.activations import capture
from gate.fit import fit, make_fit_config
from gate.fit.cleandift import Adapter, CleanDiftTrainer, aligned_layers
from gate.registry import create_technique
from gate.sample import SampleSet

SETTINGS = {"name": "cleandift", "data": "scenes-held-out", "output": "x"}


@pytest.fixture
def trainer(tiny: Backbone, scenes: SampleSet) -> CleanDiftTrainer:
    return CleanDiftTrainer(tiny, make_fit_config(SETTINGS), scenes)


def test_a_head_starts_as_the_identity_and_then_depends_on_t() -> None:
    head, feature = Adapter(6), torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    early, late = torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9])
    assert torch.equal(head(feature, early), feature)
    torch.nn.init.normal_(head.second.weight)
    assert not torch.allclose(head(feature, early), head(feature, late))


def test_there_is_a_head_for_every_aligned_layer_and_the_teacher_does_not_learn(
    trainer: CleanDiftTrainer, tiny: Backbone
) -> None:
    assert len(trainer.adapters) == len(aligned_layers(tiny.denoiser)) > 8
    assert not any(p.requires_grad for p in tiny.denoiser.parameters())
    learned = {id(p) for p in trainer.parameters}
    assert {id(p) for p in (*trainer.student.parameters(), *trainer.adapters.parameters())} == learned


def test_the_loss_is_one_minus_the_cosine_of_clean_and_noisy_features(
    trainer: CleanDiftTrainer, tiny: Backbone, scenes: SampleSet
) -> None:
    """Heads are identities and the student is the teacher: both sides are plain forwards, x0 at 0 and x_t at t."""
    batch = tiny.batch(scenes[:2].samples)
    request, paths = batch.request(300, 0), aligned_layers(tiny.denoiser)
    with torch.no_grad():
        with capture(tiny.denoiser, paths) as seen:
            tiny.denoise(request)
            noisy = dict(seen)
            tiny.denoise(batch.clean_request())
            clean = dict(seen)
        loss = trainer.loss(request.x_t, request.eps, request.t, ["", ""], [0, 1])
        plain = trainer.plain_loss(request.x_t, request.eps, request.t, ["", ""], [0, 1])
    cosines = [torch.cosine_similarity(clean[p], noisy[p], dim=1).mean(dim=(1, 2)) for p in paths]
    torch.testing.assert_close(loss, 1 - torch.stack(cosines).mean(0), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(loss, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_it_fits_a_folder_of_ones_own_images_and_drops_the_heads(
    tiny: Backbone, scenes: SampleSet, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, sample in enumerate(scenes[:8]):
        Image.fromarray(sample.image).save(images / f"{i}.png")
    config = {
        "name": "cleandift", "images": str(images), "steps": 2, "check_every": 2, "batch_size": 2, "sheet": 0,
        "output": str(tmp_path / "net"),
    }  # fmt: skip
    folder = fit(make_fit_config(config)).path
    held = load_file(folder / "over-fitted" / CLEANDIFT_FILE)
    assert held.keys() == tiny.denoiser.state_dict().keys()
    assert json.loads((folder / "fit.json").read_text())["measure"] == "misalignment with noisy features"
    technique = create_technique(f"cleandift[weights={str(folder / 'over-fitted')!r}]")
    technique.check(tiny, scenes)
    clean = create_technique("cleandift")
    ours, theirs = (
        tiny.extract(scenes[:1].samples, technique=t, layers=("up1",))["up1"] for t in (technique, clean)
    )
    assert not torch.equal(ours, theirs)
