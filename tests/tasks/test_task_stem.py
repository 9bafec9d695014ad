from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gate.tasks.stem import FirstLayer, Joined, initialise, joined, moments
from tests.tasks.made import made


def test_a_stem_gives_channels_of_mean_0_and_deviation_1() -> None:
    features, _ = made()
    standard = Joined.fitted(features)({k: 100 + 1e-3 * x for k, x in features.items()})
    again = Joined.fitted({k: 100 + 1e-3 * x for k, x in features.items()})
    for layer, x in again({k: 100 + 1e-3 * v for k, v in features.items()}).items():
        assert (
            x.mean(dim=(0, 2, 3)).abs().max() < 2e-2
        )  # float32 at 100 has steps of 8e-6, a hundredth of a deviation
        assert (x.std(dim=(0, 2, 3), unbiased=False) - 1).abs().max() < 1e-2
        assert standard[layer].shape == x.shape


def test_moments_are_those_of_all_rows() -> None:
    x = torch.randn(150, 5, 3, 4, generator=torch.Generator().manual_seed(0)) + 1e3
    mean, std = moments(x)
    torch.testing.assert_close(mean, x.double().mean(dim=(0, 2, 3)).float())
    torch.testing.assert_close(std, x.double().std(dim=(0, 2, 3), unbiased=False).float(), rtol=1e-5, atol=0)


def test_a_channel_that_does_not_vary_becomes_0() -> None:
    x = torch.randn(8, 2, 4, 4)
    x[:, 1] = 7.3
    assert (Joined.fitted({"a": x})({"a": x})["a"][:, 1] == 0).all()


def test_the_first_layer_is_one_layer_on_upsampled_and_concatenated_features() -> None:
    features, _ = made(4)
    layer = FirstLayer({k: x.shape[1] for k, x in features.items()}, (8, 8), 5)
    initialise(layer, 3)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(5.0))
        weight = torch.cat([part.weight for part in layer.parts], dim=1)
        slow = F.conv2d(joined(features, (8, 8)), weight, layer.bias)
        torch.testing.assert_close(layer(features), slow, rtol=1e-4, atol=1e-5)


def test_first_weights_are_the_seeds() -> None:
    one, two = (FirstLayer({"a": 3}, (2, 2), 4) for _ in range(2))
    initialise(one, 1)
    initialise(two, 1)
    assert torch.equal(one.parts[0].weight, two.parts[0].weight)  # type: ignore[arg-type]
    initialise(two, 2)
    assert not torch.equal(one.parts[0].weight, two.parts[0].weight)  # type: ignore[arg-type]
    assert one.parts[0].weight.var().item() == pytest.approx(1 / 3, rel=0.8)  # type: ignore[union-attr, operator]
