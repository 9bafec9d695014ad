"""info-latent: vanilla while its map is zero, on UNets and transformers; its fit, its MMD, its weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pipelines import build

import gate
from gate.adapters.formats import INFO_LATENT_FILE
from gate.adapters.info_latent import CODE, InfoLatent, joined, mmd_to_normal, time_embedder
from gate.backbone import Backbone
from gate.data import load_data
from gate.errors import ConfigurationError, UnsuitableError
from gate.fit import fit, make_fit_config
from gate.passes import single_pass
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.testing import check_technique

FAMILIES = [
    "unet",
    "sdxl",
    "pixart",
    *(pytest.param(f, marks=pytest.mark.slow) for f in ("sd3", "flux", "unconditional")),
]


def untrained(backbone: Backbone, folder: Path, push: float = 0.0) -> Path:
    """Weights as a fit begins with, and their last map moved by `push`."""
    torch.manual_seed(0)
    x0 = backbone.encode(torch.rand(1, 3, backbone.image_size, backbone.image_size))
    net = InfoLatent(x0.shape[1], int(time_embedder(backbone.denoiser).linear_2.out_features))  # type: ignore[union-attr]
    with torch.no_grad():
        net.joined.weight += push * torch.randn_like(net.joined.weight)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / INFO_LATENT_FILE)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_is_vanilla_bit_for_bit_and_else_the_image_counts(family: str, tmp_path: Path) -> None:
    backbone = gate.load_backbone(str(build(family, tmp_path / "p")), device="cpu", dtype="float32")
    samples = load_data("scenes-held-out", n=2, size=backbone.image_size)
    batch, layer = backbone.batch(samples.samples), list(backbone.layer_paths)[-2]
    request = batch.request(300, 0)
    with torch.no_grad():
        plain = backbone.denoise(request, (layer,))
        for push in (0.0, 0.3):
            technique = create_technique(
                f"info-latent[weights={str(untrained(backbone, tmp_path / str(push), push))!r}]"
            )
            technique.check(backbone, samples)
            with technique.attach(backbone):
                found = single_pass(technique, request, (layer,))
            same = [
                torch.equal(found.features[layer], plain.features[layer]),
                torch.equal(found.x0, plain.x0),
            ]
            assert same == [push == 0] * 2
        assert torch.equal(backbone.denoise(request, (layer,)).x0, plain.x0)


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_it_keeps_the_contract_on_other_families(family: str, tmp_path: Path) -> None:
    backbone = gate.load_backbone(str(build(family, tmp_path / "p")), device="cpu", dtype="float32")
    weights = str(untrained(backbone, tmp_path / "w", 0.3))
    samples = load_data("scenes-held-out", n=3, size=backbone.image_size)
    report = check_technique(f"info-latent[weights={weights!r}]", backbone, samples)
    assert report.ok, str(report)


def test_without_weights_it_says_how_to_fit_some(tmp_path: Path) -> None:
    backbone = gate.load_backbone(str(build("unet", tmp_path)), device="cpu", dtype="float32")
    samples = load_data("scenes-held-out", n=2, size=backbone.image_size)
    with pytest.raises(UnsuitableError, match="no encoder"):
        create_technique("info-latent").check(backbone, samples)
    file = tmp_path / "other" / INFO_LATENT_FILE
    file.parent.mkdir()
    save_file({"x": torch.zeros(2)}, file)
    with pytest.raises(ConfigurationError, match="is no info-latent for"):
        create_technique("info-latent", weights=str(file)).check(backbone, samples)


def test_the_code_tells_images_apart_and_is_a_samples_own(tiny: Backbone, scenes: SampleSet) -> None:
    net = InfoLatent(4, 128)
    x0 = tiny.batch(scenes[:4].samples).x0
    code = net.code(x0)
    assert code.shape == (4, CODE)
    torch.testing.assert_close(torch.cat([net.code(x[None]) for x in x0]), code, atol=1e-6, rtol=1e-5)
    assert torch.equal(net(x0), torch.zeros(4, 128))
    with joined(tiny.denoiser) as carried:
        assert carried.added is None


@pytest.mark.slow
def test_mmd_to_the_prior_is_that_of_many_draws_and_0_for_it() -> None:
    """Against the V-statistic with drawn priors, whose own bias is (1 - E k) / n."""
    g = torch.Generator().manual_seed(0)
    d, many = 4, 4000
    a, prior = torch.randn(5, d, generator=g).double() + 1, torch.randn(many, d, generator=g).double()

    def k(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(x[:, None] - y).square().mean(-1) / d)

    between = k(prior, prior)
    unbiased = (between.sum() - many) / (many * (many - 1))
    expected = k(a, a).mean() - 2 * k(a, prior).mean() + unbiased
    assert mmd_to_normal(a).item() == pytest.approx(expected.item(), abs=2e-3)
    assert mmd_to_normal(prior).item() == pytest.approx((1 - unbiased.item()) / many, abs=5e-4)
    moved = [mmd_to_normal(prior[:500] + step).item() for step in (0, 0.5, 1, 2)]
    assert moved == sorted(moved) and math.isfinite(moved[-1])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit") / "info"
    config = {
        "name": "info-latent", "data": "scenes-held-out", "samples": 10, "steps": 4, "check_every": 2, "batch_size": 4,
        "sheet": 1, "output": str(folder),
    }  # fmt: skip
    return fit(make_fit_config(config)).path


@pytest.mark.slow
def test_a_fit_leaves_weights_that_the_technique_takes(
    fitted: Path, tiny: Backbone, scenes: SampleSet
) -> None:
    report = json.loads((fitted / "fit.json").read_text())
    assert (
        report["measure"] == "eps error"
        and report["held_out"]["0"] > 0
        and (fitted / "samples.png").is_file()
    )
    learned = load_file(fitted / "over-fitted" / INFO_LATENT_FILE)
    assert learned["joined.weight"].abs().max() > 0
    technique = create_technique(f"info-latent[weights={str(fitted / 'over-fitted')!r}]")
    changed = tiny.extract(scenes[:1].samples, technique=technique)
    assert all(not torch.equal(changed[k], v) for k, v in tiny.extract(scenes[:1].samples).items())


def test_a_fit_serves_transformers_and_sdxl(tmp_path: Path) -> None:
    for family in ("sdxl", "pixart"):
        source = build(family, tmp_path / family)
        config = {
            "name": "info-latent", "backbone": str(source), "data": "scenes-held-out", "samples": 8, "steps": 1,
            "check_every": 1, "batch_size": 2, "sheet": 0, "output": str(tmp_path / f"{family}-out"),
        }  # fmt: skip
        assert (fit(make_fit_config(config)).path / INFO_LATENT_FILE).is_file()
