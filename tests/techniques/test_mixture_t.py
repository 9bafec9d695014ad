"""mixture-t: which levels it draws, that it is the weighted mean it says, and that draws belong to a sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_pipelines import build

from gate.backbone import Backbone
from gate.passes import single_pass
from gate.registry import create_technique
from gate.request import Batch
from gate.sample import SampleSet
from gate.techniques.mixture_t import FAR, MixtureT

LAYERS = ("up1",)


def test_it_is_half_the_clean_feature_and_half_the_mean_of_its_draws(
    batch: Batch, backbone: Backbone
) -> None:
    technique, request = MixtureT(members=2), batch.request(300, 0)
    with torch.no_grad():
        found = single_pass(technique, request, LAYERS)
        clean = backbone.denoise(batch.clean_request(), LAYERS)
        drawn = [
            backbone.denoise(request.renoised(FAR * (k + 1)).at(t), LAYERS)
            for k, t in enumerate(technique.levels(request))
        ]
    for part in (lambda r: r.features["up1"], lambda r: r.x0):
        expected = 0.5 * part(clean) + 0.25 * part(drawn[0]) + 0.25 * part(drawn[1])
        torch.testing.assert_close(part(found), expected)


def test_levels_stay_below_the_timestep_and_follow_the_priority(batch: Batch) -> None:
    levels = torch.stack(MixtureT(members=200).levels(batch.request(300, 0)))
    assert levels.shape == (200, len(batch)) and int(levels.min()) >= 1 and int(levels.max()) <= 300
    assert levels.double().mean().item() == pytest.approx(200, abs=1)  # of pi(t) ~ t on 1 ... 300: 2 T / 3
    low = (levels <= 150).double().mean().item()
    assert low == pytest.approx(150 * 151 / (300 * 301), abs=0.01)


def test_levels_are_a_function_of_seed_and_sample(
    backbone: Backbone, samples: SampleSet, batch: Batch
) -> None:
    technique = MixtureT()
    together = torch.stack(technique.levels(batch.request(300, 0)))
    alone = [technique.levels(backbone.batch([s]).request(300, 0)) for s in samples]
    for i, each in enumerate(alone):
        assert [int(t) for t in each] == together[:, i].tolist()
    other = torch.stack(technique.levels(batch.request(300, 1)))
    assert not torch.equal(together, other) and len({tuple(row) for row in together.T.tolist()}) == len(
        samples
    )


def test_at_timestep_0_every_draw_is_the_identity(batch: Batch) -> None:
    assert all((t == 0).all() for t in MixtureT().levels(batch.request(0, 0)))


def test_without_the_clean_half_it_costs_a_call_less() -> None:
    assert create_technique("mixture-t").cost.per_pass == 4
    assert create_technique("mixture-t[clean=0]").cost.per_pass == 3
    assert create_technique("mixture-t[members=0]").cost.per_pass == 1
    with pytest.raises(ValueError, match="members"):
        MixtureT(members=-1)
    assert np.isclose(MixtureT(clean=0.25).clean, 0.25)


def test_it_keeps_the_contract(backbone: Backbone, samples: SampleSet) -> None:
    from gate.testing import check_technique

    for name in ("mixture-t[members=2]", "mixture-t[members=2,clean=0]"):
        report = check_technique(name, backbone, samples)
        assert report.ok, str(report)


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_it_keeps_the_contract_on_other_families(family: str, tmp_path: Path) -> None:
    import gate
    from gate.data import load_data
    from gate.testing import check_technique

    other = gate.load_backbone(str(build(family, tmp_path)), device="cpu", dtype="float32")
    report = check_technique(
        "mixture-t[members=2]", other, load_data("scenes-held-out", n=3, size=other.image_size)
    )
    assert report.ok, str(report)


def test_the_dear_ones_are_not_in_all_and_say_why() -> None:
    from gate.registry import everything

    for name in ("mixture-t", "self-guidance"):
        technique = create_technique(name)
        assert name not in everything() and f"{technique.cost.total:g} denoiser calls" in technique.unlisted
    assert "info-latent" in everything()
