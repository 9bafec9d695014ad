"""ddim-inversion, noise-ensemble, timestep-ensemble, shared-timestep: where on the noise axis they call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipelines import build

import gate
from gate.backbone import Backbone
from gate.data import load_data
from gate.errors import UnsuitableError, UsageError
from gate.passes import single_pass
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import SampleSet
from gate.technique import Technique
from gate.techniques.ddim_inversion import ddim_path
from gate.techniques.noise_ensemble import derived_seed
from gate.techniques.shared_timestep import SharedTimestep

LAYERS = ("mid", "up1", "up3")


def vanilla(batch: Batch, t: int, seed: int = 0):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return single_pass(Technique(), batch.request(t, seed), LAYERS)


@pytest.mark.parametrize("t, shared", [(0, 0), (19, 0), (20, 20), (50, 40), (99, 80), (100, 100), (777, 777)])
def test_shared_timestep_table(t: int, shared: int) -> None:
    assert SharedTimestep().shared(torch.tensor([t])).tolist() == [shared]
    assert SharedTimestep(threshold=100, intervals=100).shared(torch.tensor([t])).tolist() == [t]


def test_shared_timestep_tells_but_does_not_move(batch: Batch) -> None:
    seen = []

    def call(request):  # type: ignore[no-untyped-def]
        seen.append(request)
        return batch.backbone.denoise(request)

    original = batch.request(50, 0)
    with torch.no_grad():
        SharedTimestep().denoise(original, call)
        above = single_pass(SharedTimestep(), batch.request(100, 0), LAYERS)
    assert seen[0].t_condition.tolist() == [40] * len(batch) and seen[0].t.tolist() == [50] * len(batch)
    assert torch.equal(seen[0].x_t, original.x_t)
    assert torch.equal(above.features["mid"], vanilla(batch, 100).features["mid"])


def test_flow_models_share_what_they_are_told(tmp_path: Path) -> None:
    """On T sigma, not on the index: 100 and above bit for bit, below it the left end of the interval."""
    flow = gate.load_backbone(str(build("sd3", tmp_path)), device="cpu", dtype="float32")
    samples = load_data("scenes-held-out", n=1, size=flow.image_size)
    seen: list[float] = []

    def call(request):  # type: ignore[no-untyped-def]
        seen.append(float(flow.schedule.told(request.t_condition)[0]))
        return flow.denoise(request)

    for t in (3, 20, 400):
        request = flow.batch(samples.samples).request(t, 0)
        plain = float(flow.schedule.told(request.t)[0])
        with torch.no_grad():
            SharedTimestep().denoise(request, call)
        assert seen[-1] == (plain - plain % 20 if plain < 100 else plain)
    assert SharedTimestep(intervals=100).denoise(request, lambda asked: asked) is request  # type: ignore[arg-type, comparison-overlap]


def test_noise_ensemble_is_the_mean_over_its_seeds(batch: Batch) -> None:
    with torch.no_grad():
        got = single_pass(create_technique("noise-ensemble", members=3), batch.request(300, 5), LAYERS)
    single = [vanilla(batch, 300, derived_seed(5, k)) for k in range(3)]
    for layer in LAYERS:
        mean = torch.stack([r.features[layer] for r in single]).double().mean(0)
        assert torch.allclose(got.features[layer].double(), mean, atol=1e-6)
    assert len({derived_seed(s, k) for s in range(50) for k in range(8)}) == 400


def test_noise_ensemble_to_the_right_of_guidance_is_refused(batch: Batch) -> None:
    with torch.no_grad(), pytest.raises(UnsuitableError, match="first"):
        single_pass(create_technique("guidance-pag+noise-ensemble"), batch.request(50, 0), ())
    with pytest.raises(UsageError, match="both replace the latent"):
        create_technique("noise-ensemble+ddim-inversion")


def test_timestep_ensemble_is_the_mean_over_clamped_offsets(batch: Batch) -> None:
    with torch.no_grad():
        got = single_pass(
            create_technique("timestep-ensemble", offsets=(-25, 0, 25)), batch.request(10, 0), LAYERS
        )
    single = [vanilla(batch, t) for t in (0, 10, 35)]
    for layer in LAYERS:
        mean = torch.stack([r.features[layer] for r in single]).double().mean(0)
        assert torch.allclose(got.features[layer].double(), mean, atol=1e-6)


@pytest.mark.slow
def test_inverting_and_going_back_returns_the_latent(tiny: Backbone, scenes: SampleSet) -> None:
    batch = tiny.batch(scenes[:2].samples)
    errors = []
    for steps in (
        8,
        64,
    ):  # both ways are first order, so eight times the steps leave about an eighth of the error
        with torch.no_grad():
            request = create_technique("ddim-inversion", steps=steps).start(batch.request(50, 0))
            levels = [request.t * k // steps for k in range(steps, -1, -1)]
            back = ddim_path(request, request.x_t, levels, batch.neutral)
        errors.append(float((back - batch.x0).norm() / batch.x0.norm()))
        assert float((request.x_t - batch.x0).norm() / batch.x0.norm()) > 5 * errors[-1]
    assert errors[0] < 0.02 and errors[1] < errors[0] / 3


def test_inversion_does_not_depend_on_the_seed_and_keeps_x_t_and_eps_consistent(batch: Batch) -> None:
    technique = create_technique("ddim-inversion", steps=3)
    with torch.no_grad():
        first, second = (technique.start(batch.request(300, seed)) for seed in (0, 1))
    assert torch.equal(first.x_t, second.x_t)
    rebuilt = batch.backbone.schedule.add_noise(batch.x0, first.eps, first.t)
    assert torch.allclose(rebuilt, first.x_t, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["noise-ensemble[members=0]", "timestep-ensemble[offsets=()]", "ddim-inversion[steps=-1]",
     "shared-timestep[intervals=3]"],
)  # fmt: skip
def test_impossible_settings_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be set up"):
        create_technique(name)
