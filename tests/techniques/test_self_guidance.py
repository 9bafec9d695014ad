"""Self-guidance: the gradient it follows, what a change of eps is for every prediction type, other families."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipelines import build

import gate
from gate.backbone import Backbone
from gate.data import load_data
from gate.passes import single_pass
from gate.request import Batch
from gate.sample import SampleSet
from gate.schedule import NoiseSchedule
from gate.technique import descend
from gate.techniques.self_guidance import SelfGuidance
from gate.testing import check_technique


@pytest.fixture(scope="module")
def guided(tiny: Backbone, scenes: SampleSet) -> SelfGuidance:
    technique = SelfGuidance(prototypes=4)
    technique.fit(tiny, scenes)
    return technique


@pytest.fixture(scope="module")
def some(tiny: Backbone, scenes: SampleSet) -> Batch:
    return tiny.batch(scenes[:3].samples)


def test_a_scale_of_0_is_vanilla_bit_for_bit(tiny: Backbone, some: Batch) -> None:
    request = some.request(300, 0)
    plain = tiny.denoise(request, ("up1",))
    found = single_pass(SelfGuidance(scale=0.0), request, ("up1",))
    assert torch.equal(found.features["up1"], plain.features["up1"]) and torch.equal(found.x0, plain.x0)


def test_the_change_of_eps_is_the_scaled_gradient_of_the_groups_log_probability(
    guided: SelfGuidance, tiny: Backbone, some: Batch
) -> None:
    """Directional derivative by finite differences, in float32 of the feature: to a few per cent."""
    request = some.request(300, 0)
    group = guided._scores(guided._pooled(some)).argmax(dim=1)
    with torch.no_grad():
        change = guided._guided(request, group) - tiny.denoise(request).prediction
    s = tiny.schedule.noise[300].item()
    gradient = -change / (guided.scale * s)
    direction = gradient / gradient.square().sum((1, 2, 3), keepdim=True).sqrt()

    def likely(step: float) -> torch.Tensor:
        moved = request.with_(x_t=request.x_t + step * direction)
        with torch.no_grad():
            feature = tiny.denoise(moved, (guided._place,)).features[guided._place]
        scores = guided._scores(feature.mean(dim=(2, 3))) / guided.temperature
        return scores.log_softmax(dim=1).gather(1, group[:, None])[:, 0]

    numeric = (likely(0.02) - likely(-0.02)) / 0.04
    torch.testing.assert_close(numeric, gradient.square().sum((1, 2, 3)).sqrt(), rtol=0.05, atol=1e-4)


def test_a_guided_step_moves_the_feature_towards_its_group(tiny: Backbone, scenes: SampleSet) -> None:
    strong = SelfGuidance(prototypes=4, scale=20.0)
    strong.fit(tiny, scenes)
    batch = tiny.batch(scenes.samples)
    group = strong._scores(strong._pooled(batch)).argmax(dim=1)

    def likely(x_t: torch.Tensor, t: torch.Tensor) -> float:
        feature = tiny.denoise(
            batch.request(300, 0).with_(x_t=x_t, t=t, t_condition=t), (strong._place,)
        ).features
        scores = strong._scores(feature[strong._place].mean(dim=(2, 3))) / strong.temperature
        return float(scores.log_softmax(dim=1).gather(1, group[:, None]).mean())

    with torch.no_grad():
        request = batch.request(300, 0)
        plain = descend(request, 50, 1, lambda r: tiny.denoise(r).prediction)
        moved = descend(request, 50, 1, lambda r: strong._guided(r, group))
        assert likely(moved.x_t, moved.t) > likely(plain.x_t, plain.t)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_a_changed_eps_is_the_same_change_for_every_prediction_type(kind: str) -> None:
    if kind == "flow_prediction":
        schedule = NoiseSchedule.flow()
    else:
        abar = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)
        schedule = NoiseSchedule(abar.sqrt(), (1 - abar).sqrt(), kind)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    x_t, prediction, change = (torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([20, 300, 900])
    shifted = schedule.shifted(prediction, change, t)
    eps, x0 = schedule.eps_from(prediction, x_t, t), schedule.x0_from(prediction, x_t, t)
    torch.testing.assert_close(schedule.eps_from(shifted, x_t, t), eps + change)
    a, s = schedule.coefficients(t, x_t)
    torch.testing.assert_close(a * schedule.x0_from(shifted, x_t, t) + s * (eps + change), a * x0 + s * eps)


@pytest.mark.parametrize("family", ["sdxl", "pixart", pytest.param("sd3", marks=pytest.mark.slow)])
def test_it_keeps_the_contract_on_other_families(family: str, tmp_path: Path) -> None:
    backbone = gate.load_backbone(str(build(family, tmp_path)), device="cpu", dtype="float32")
    samples = load_data("scenes-held-out", n=3, size=backbone.image_size)
    # a long DDIM step by random weights leaves the image, guided or not
    report = check_technique("self-guidance[lead=1]", backbone, samples)
    assert report.ok, str(report)
