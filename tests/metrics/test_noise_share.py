"""What features vary with: the three shares, their limits, and that CleanDIFT has no noise in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gate.backbone import Backbone
from gate.metric import Pass
from gate.metrics.noise_share import NoiseShare, variance_shares
from gate.passes import single_pass
from gate.registry import create_technique
from gate.sample import SampleSet
from gate.technique import Technique
from gate.testing import check_metric


def maps() -> tuple[Tensor, Tensor]:
    """Two features that are orthogonal once their channels are centred, of equal energy."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 5, 6, 6, generator=g, dtype=torch.float64) for _ in range(2))
    a, b = (x - x.mean(dim=(2, 3), keepdim=True) for x in (a, b))
    b = b - (a * b).sum((1, 2, 3), keepdim=True) / (a * a).sum((1, 2, 3), keepdim=True) * a
    return tuple(x / x.square().sum((1, 2, 3), keepdim=True).sqrt() for x in (a, b))  # type: ignore[return-value]


def test_each_limit_has_its_share() -> None:
    image, noise = maps()
    rest = image.roll(1, 0)
    for f, expected in (
        (image, (1, 0, 0)),
        (noise, (0, 1, 0)),
        (3 * image + 4 * noise + 7, (9 / 25, 16 / 25, 0)),  # an offset is no variance
        (torch.full_like(image, 2.0), (0, 0, 1)),
    ):
        found = variance_shares(f, image, noise)
        torch.testing.assert_close(
            found, torch.tensor([expected] * 4, dtype=torch.float64), atol=1e-12, rtol=0
        )
    found = variance_shares(rest, image, noise)
    assert (found >= 0).all() and (found[:, 2] > 0.9).all()
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))


def test_what_both_explain_is_the_images_and_neither_scale_matters() -> None:
    image, noise = maps()
    torch.testing.assert_close(variance_shares(image, image, image)[:, 0], torch.ones(4, dtype=torch.float64))
    mixed = image + noise
    once = variance_shares(mixed, image, image + 2 * noise)
    torch.testing.assert_close(
        once, torch.tensor([[0.5, 0.5, 0.0]] * 4, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(variance_shares(-9 * mixed, 0.1 * image, 5 * (image + 2 * noise)), once)


def shares(technique: Technique, tiny: Backbone, scenes: SampleSet, t: int) -> Tensor:
    batch, layers = tiny.batch(scenes[:6].samples), ("up1", "up2")
    with torch.no_grad(), technique.attach(tiny):
        request = batch.request(t, 0)
        own = single_pass(technique, batch.clean_request(), layers).features
        seen = single_pass(technique, request, layers)
        again = lambda r: single_pass(technique, r, layers)  # noqa: E731
        return NoiseShare().measure(Pass(request, seen, own, own, again)).mean(dim=0)


def test_noise_grows_with_the_timestep_and_cleandift_has_none(tiny: Backbone, scenes: SampleSet) -> None:
    image, noise, _ = torch.stack([shares(Technique(), tiny, scenes, t) for t in (50, 300, 800)]).T
    assert (image.diff() < 0).all() and (noise.diff() > 0).all()
    found = shares(create_technique("cleandift"), tiny, scenes, 300)
    assert found.tolist() == pytest.approx([1, 0, 0], abs=1e-5)


def test_an_ensemble_over_noises_has_less_of_it(tiny: Backbone, scenes: SampleSet) -> None:
    alone = shares(Technique(), tiny, scenes, 300)
    together = shares(create_technique("noise-ensemble[members=4]"), tiny, scenes, 300)
    assert together[1] < alone[1]


@pytest.mark.slow
def test_it_keeps_the_contract(tiny: Backbone) -> None:
    report = check_metric(NoiseShare, tiny)
    assert report.ok, str(report)
