"""The epilogue of an extraction: against torch and scikit-learn, and the same bits whatever the batch."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize

from gate.errors import ConfigurationError, NonFiniteError, UsageError
from gate.extraction.epilogue import Epilogue, principal_directions, random_projection


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_default_nothing_changes() -> None:
    x = draw(2, 5, 4, 6)
    assert torch.equal(Epilogue().apply({"up": x})["up"], x)


def test_grids_are_those_of_torch() -> None:
    x = draw(3, 5, 7, 9)
    for k in (1, 2, 4, 7):
        assert torch.equal(Epilogue(pool=k).apply({"up": x})["up"], adaptive_avg_pool2d(x, k))
    for k in (3, 12):
        expected = interpolate(x, (k, k), mode="bilinear", align_corners=False, antialias=False)
        torch.testing.assert_close(Epilogue(resize=k).apply({"up": x})["up"], expected)
    vector = Epilogue(vector=True).apply({"up": x})["up"]
    torch.testing.assert_close(vector, x.mean((2, 3)))
    assert torch.equal(vector, Epilogue(pool=1).apply({"up": x})["up"].flatten(1))


def test_first_the_grid_then_the_projection_then_the_length_then_the_dtype() -> None:
    x = draw(4, 6, 5, 5)
    epilogue = Epilogue(pool=2, project=3, normalise=True, dtype="float16")
    state = epilogue.fit({"up": x})
    y = adaptive_avg_pool2d(x, 2) - state["up/mean"][:, None, None]
    expected = normalize(torch.einsum("dc,nchw->ndhw", state["up/matrix"], y), dim=1).half()
    got = epilogue.apply({"up": x}, state)["up"]
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)


SETTINGS: list[dict[str, Any]] = [
    {"pool": 3},
    {"resize": 5, "normalise": True},
    {"vector": True, "project": 4},
    {"project": 7, "projection": "random", "normalise": True},
    {"project": 5, "normalise": True, "dtype": "bfloat16"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_neither_batch_nor_strides_change_a_bit(settings: dict[str, Any]) -> None:
    """Odd sizes: an image in a batch then lies at addresses that a vector unit treats otherwise."""
    epilogue = Epilogue(**settings)
    for x in (draw(7, 37, 5, 7), draw(7, 37, 5, 7).half()):
        state = epilogue.fit({"up": x.float()})
        whole = epilogue.apply({"up": x}, state)["up"]
        for size in (1, 3):
            parts = [epilogue.apply({"up": part}, state)["up"] for part in torch.split(x, size)]
            assert torch.equal(torch.cat(parts), whole)
        other = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(epilogue.apply({"up": other}, state)["up"], whole)


def test_shapes_are_foretold() -> None:
    x = draw(3, 6, 5, 4)
    for settings in (
        {},
        {"pool": 2},
        {"resize": 9},
        {"vector": True},
        {"project": 2},
        {"vector": True, "project": 2},
    ):
        epilogue = Epilogue(**settings)
        stored = epilogue.apply({"up": x}, epilogue.fit({"up": x}))["up"]
        assert epilogue.shape(6, 5, 4) == stored.shape[1:]


def test_principal_directions_are_those_of_scikit_learn() -> None:
    mixing = draw(9, 9, seed=1) * torch.arange(1, 10)
    x = torch.einsum("dc,nchw->ndhw", mixing, draw(5, 9, 4, 6)) + 3 * draw(9, seed=2)[:, None, None]
    rows = x.permute(0, 2, 3, 1).reshape(-1, 9)
    theirs = PCA(4, svd_solver="full").fit(rows.double().numpy())
    mean, matrix, explained = principal_directions(x, 4)
    np.testing.assert_allclose(mean, theirs.mean_, atol=1e-5)
    np.testing.assert_allclose(explained, theirs.explained_variance_ratio_, rtol=1e-5)
    signs = np.sign((matrix.numpy() * theirs.components_).sum(1))
    np.testing.assert_allclose(matrix.numpy() * signs[:, None], theirs.components_, atol=1e-5)
    largest = matrix.gather(1, matrix.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()

    epilogue = Epilogue(project=4)
    got = epilogue.apply({"up": x}, epilogue.fit({"up": x}))["up"].permute(0, 2, 3, 1).reshape(-1, 4)
    np.testing.assert_allclose(got * signs, theirs.transform(rows.double().numpy()), atol=2e-4)


def test_a_pca_on_few_images_or_flat_channels_is_refused() -> None:
    flat = draw(4, 6, 3, 3)
    flat[:, 2:] = 1.0
    with pytest.raises(ConfigurationError, match="'up' varies in 2 directions over a sample of 36 positions"):
        Epilogue(project=3).fit({"up": flat})
    with pytest.raises(ConfigurationError, match="varies in 1 directions over a sample of 2"):
        Epilogue(project=2, vector=True).fit({"up": draw(2, 6, 3, 3)})
    with pytest.raises(ConfigurationError, match="has 6 channels, fewer than --project 7"):
        Epilogue(project=7).fit({"up": flat})
    flat[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="'up' holds NaN"):
        Epilogue(project=2).fit({"up": flat})


def test_a_random_projection_keeps_inner_products_on_average() -> None:
    """Over 2,000 projections: the mean within four standard errors of the truth, the spread as theory has it."""
    x, y = draw(40), draw(40, seed=1) + 0.5 * draw(40)
    d = 8
    made = torch.stack([random_projection(f"layer{i}", 40, d) for i in range(2000)])
    products = ((made @ x) * (made @ y)).sum(1)
    spread = float(((x @ x) * (y @ y) + (x @ y) ** 2) / d) ** 0.5
    assert abs(float(products.mean() - x @ y)) < 4 * spread / 2000**0.5
    assert abs(float(products.std()) / spread - 1) < 0.1
    assert abs(float(x @ y)) > 8 * spread / 2000**0.5  # zero would not have passed


def test_a_layers_name_is_the_seed_of_its_projection() -> None:
    first, again, other = (random_projection(name, 5, 3) for name in ("up", "up", "mid"))
    assert torch.equal(first, again) and not torch.equal(first, other)
    epilogue = Epilogue(project=3, projection="random")
    x = draw(2, 5, 2, 2)
    state = epilogue.fit({"up": x})
    assert list(state) == ["up/matrix"] and torch.equal(state["up/matrix"], first)
    torch.testing.assert_close(
        epilogue.apply({"up": x}, state)["up"], torch.einsum("dc,nchw->ndhw", first, x)
    )


def test_lengths_are_one_and_zeros_stay_zeros() -> None:
    x = draw(2, 6, 3, 3) * 50
    x[0, :, 1, 1] = 0
    y = Epilogue(normalise=True).apply({"up": x})["up"]
    lengths = y.norm(dim=1)
    assert lengths[0, 1, 1] == 0
    lengths[0, 1, 1] = 1
    torch.testing.assert_close(lengths, torch.ones(2, 3, 3))


def test_maps_are_cast_alone() -> None:
    maps, x = draw(2, 8, 16, 77).softmax(-1), draw(2, 6, 4, 4)
    epilogue = Epilogue(pool=2, project=3, normalise=True, dtype="bfloat16")
    features = {"attn": maps, "up": x}
    state = epilogue.fit(features, maps={"attn"})
    assert {name.split("/")[0] for name in state} == {"up"}
    done = epilogue.apply(features, state, maps={"attn"})
    assert torch.equal(done["attn"], maps.bfloat16()) and done["up"].shape == (2, 3, 2, 2)


def test_what_does_not_fit_the_dtype_is_refused_with_its_layer() -> None:
    x = draw(2, 6, 3, 3)
    x[1, 2, 0, 0] = 70_000
    with pytest.raises(
        NonFiniteError, match=r"'up' holds values beyond 65,504.*bfloat16, or with --normalise"
    ):
        Epilogue(dtype="float16").apply({"mid": x.clamp(-1, 1), "up": x})
    narrow: list[dict[str, Any]] = [{"dtype": "bfloat16"}, {"dtype": "float16", "normalise": True}]
    for settings in narrow:
        assert Epilogue(**settings).apply({"up": x})["up"].isfinite().all()
    with pytest.raises(NonFiniteError, match="'attn' holds values beyond 65,504"):
        Epilogue(dtype="float16").apply({"attn": x}, maps={"attn"})
    for bad in (float("nan"), float("inf")):
        x[0, 0, 0, 0] = bad
        cases: list[dict[str, Any]] = [{}, {"normalise": True, "dtype": "float16"}, {"pool": 2}]
        for settings in cases:
            with pytest.raises(NonFiniteError, match="'up' holds NaN or infinity"):
                Epilogue(**settings).apply({"up": x})


def test_layers_that_do_not_fit_are_refused() -> None:
    x = draw(2, 6, 3, 5)
    with pytest.raises(ConfigurationError, match=r"'up' is 3 x 5, smaller than --pool 4.*use --resize 4"):
        Epilogue(pool=4).apply({"up": x})
    with pytest.raises(ConfigurationError, match="No projection was fitted for layer 'up'"):
        Epilogue(project=2).apply({"up": x}, Epilogue(project=2).fit({"mid": x}))
    with pytest.raises(ConfigurationError, match="takes 6 channels to 2, not 6 to 3"):
        Epilogue(project=3).apply({"up": x}, Epilogue(project=2).fit({"up": x}))
    with pytest.raises(ConfigurationError, match="'up' is no feature map"):
        Epilogue(pool=1).apply({"up": x[0]})


def test_an_epilogue_is_written_and_read_back() -> None:
    for pool, projection, dtype in itertools.product((0, 3), ("pca", "random"), ("float32", "bfloat16")):
        epilogue = Epilogue(pool=pool, project=2, projection=projection, dtype=dtype)
        assert Epilogue.from_dict(json.loads(json.dumps(epilogue.describe()))) == epilogue
    assert Epilogue.from_dict({}) == Epilogue()
    with pytest.raises(UsageError, match="Unknown setting 'pol'. Did you mean 'pool'"):
        Epilogue.from_dict({"pol": 3})


@pytest.mark.parametrize(
    "settings",
    [
        {"pool": 2, "resize": 2},
        {"pool": 1, "vector": True},
        {"pool": -1},
        {"project": 2.0},
        {"resize": True},
        {"dtype": "int8"},
        {"projection": "umap"},
    ],
    ids=str,
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Epilogue(**settings)
