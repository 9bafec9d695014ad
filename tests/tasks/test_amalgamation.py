from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gate.errors import ConfigurationError, UsageError
from gate.tasks import create_task
from gate.tasks.amalgamation import Amalgam, Amalgamation, key_of, load_amalgam, penalties, save_amalgam
from gate.tasks.stem import Joined
from tests.tasks.made import made


def several(b: int, *, equal: bool = False, n: int = 12) -> dict[str, torch.Tensor]:
    """Features of b sources, two layers each."""
    found = {}
    for i in range(b):
        features, _ = made(n, seed=0 if equal else i)
        found |= {key_of(f"s{i}", layer): x for layer, x in features.items()}
    return found


def weights_of(amalgam: Amalgam, features: dict[str, torch.Tensor]) -> torch.Tensor:
    amalgam(features)
    assert amalgam.last is not None
    return amalgam.last


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_sum_to_1_over_features(per_channel: bool) -> None:
    features = several(4)
    weights = weights_of(Amalgamation(per_channel=per_channel)(features, 0), features)
    assert weights.shape == (12, 3, 4, 10 if per_channel else 1)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(12, 3, weights.shape[3]))
    assert (weights > 0).all() and weights.std() > 0


@pytest.mark.parametrize("per_channel", [False, True])
def test_one_feature_gives_the_identity(per_channel: bool) -> None:
    features = several(1)
    amalgam = Amalgamation(assigners=2, per_channel=per_channel)(features, 0)
    plain = Joined.fitted(features)(features)
    for layer, x in amalgam(features).items():
        torch.testing.assert_close(x, torch.cat([plain[key_of("s0", layer)]] * 2, dim=1))


@pytest.mark.parametrize("per_channel", [False, True])
def test_equal_features_give_their_mean_whatever_the_weights(per_channel: bool) -> None:
    features = several(3, equal=True)
    amalgam = Amalgamation(assigners=1, per_channel=per_channel)(features, 0)
    plain = Joined.fitted(features)(features)
    for layer, x in amalgam(features).items():
        mean = torch.stack([plain[key_of(f"s{i}", layer)] for i in range(3)]).mean(dim=0)
        torch.testing.assert_close(x, mean)


def test_equal_features_and_no_preference_weigh_equally() -> None:
    features = several(3, equal=True)
    amalgam = Amalgamation()(features, 0)
    torch.nn.init.zeros_(amalgam.preference)
    torch.testing.assert_close(weights_of(amalgam, features), torch.full((12, 3, 3, 1), 1 / 3))


def test_a_score_does_not_grow_with_the_channels() -> None:
    """Every channel twice is the same feature, so it is weighed the same."""
    features = several(3)
    twice = {key: torch.cat([x, x], dim=1) for key, x in features.items()}
    one, two = Amalgamation()(features, 0), Amalgamation()(twice, 0)
    with torch.no_grad():
        parts = torch.split(one.assign.weight, list(one.widths), dim=1)
        two.assign.weight.copy_(torch.cat([w for part in parts for w in (part, part)], dim=1))
        two.preference.copy_(one.preference)
    torch.testing.assert_close(weights_of(two, twice), weights_of(one, features))


def test_the_amalgam_is_eq_3_by_hand() -> None:
    features = several(2)
    amalgam = Amalgamation(assigners=2)(features, 1)
    given, plain = amalgam(features), amalgam.joined(features)
    w = amalgam.last
    assert w is not None and given["fine"].shape == (12, 12, 8, 8)
    second = (
        w[:, 1, 0, 0, None, None, None] * plain["s0|fine"]
        + w[:, 1, 1, 0, None, None, None] * plain["s1|fine"]
    )
    torch.testing.assert_close(given["fine"][:, 6:], second)


def test_penalties_are_eq_5_by_hand() -> None:
    w = torch.tensor([[[0.6, 0.8], [1.0, 0.0]]])[..., None]  # two assigners, two features; norms 1 and 1
    apart = (0.4**2 + 0.8**2) ** 0.5
    assert float(penalties(w, 0.5, 0.0)) == pytest.approx(-0.5 * 2)
    assert float(penalties(w, 0.0, 0.3)) == pytest.approx(-0.3 / 2 * 2 * apart)
    three = torch.cat([w, w[:, :1]], dim=1)  # pairs (0, 1), (1, 2) and twice each; (0, 2) are equal
    assert float(penalties(three, 0.0, 1.0)) == pytest.approx(-2 * apart)


def test_both_penalties_have_a_slope() -> None:
    features = several(3)
    for settings in (Amalgamation(sparsity=1, diversity=0), Amalgamation(sparsity=0, diversity=1)):
        amalgam = settings(features, 0)
        amalgam(features)
        amalgam.penalty().backward()  # type: ignore[no-untyped-call]
        assert amalgam.preference.grad is not None and amalgam.preference.grad.abs().max() > 1e-3
        assert torch.isfinite(amalgam.preference.grad).all()
    one = Amalgamation(assigners=1, sparsity=0, diversity=1)(features, 0)
    one(features)
    one.penalty().backward()  # type: ignore[no-untyped-call]  # a lone assigner is apart from nobody, and that is no NaN
    assert one.preference.grad is not None and (one.preference.grad == 0).all()


def trained(settings: Amalgamation) -> tuple[float, float]:
    """The mean top weight, and the mean overlap of assigners, sum_i w_i^j w_i^k, when a head was trained so."""
    features, truth = several(3), made(12)[1]
    task = dataclasses.replace(create_task("segmentation-linear", epochs=20, batch=4), stem=settings)
    stem = task.train(features, truth, seed=0).stem
    assert isinstance(stem, Amalgam)
    with torch.no_grad():
        w = weights_of(stem, features)[..., 0]
    overlap = (w[:, 0] * w[:, 1]).sum(dim=1)
    return float(w.amax(dim=2).mean()), float(overlap.mean())


def test_sparsity_raises_the_top_weight_and_diversity_lowers_the_overlap() -> None:
    plain = trained(Amalgamation(assigners=2, sparsity=0, diversity=0))
    sparse = trained(Amalgamation(assigners=2, sparsity=1, diversity=0))
    diverse = trained(Amalgamation(assigners=2, sparsity=0, diversity=1))
    assert sparse[0] > plain[0] + 0.05
    assert diverse[1] < plain[1] - 0.05


@pytest.mark.parametrize(
    "name", ["segmentation", "scarce-segmentation", "classification", "correspondence-conv"]
)
def test_every_task_that_trains_takes_an_amalgamation_and_trains_its_weights(name: str) -> None:
    features, truth = several(2), made(12)[1]
    small = {"segmentation": {"width": 8}, "scarce-segmentation": {"labelled": 8, "members": 2}}.get(name, {})
    task = dataclasses.replace(create_task(name, epochs=2, batch=4, **small), stem=Amalgamation(assigners=2))
    head = task.train(features, truth, seed=0)
    before = Amalgamation(assigners=2)(features, 0)
    assert isinstance(head.stem, Amalgam) and not torch.equal(head.stem.preference, before.preference)
    assert len(task.judge(head, features, truth)) == (6 if name == "correspondence-conv" else 12)


def test_what_is_not_trained_takes_none() -> None:
    task = dataclasses.replace(create_task("correspondence"), stem=Amalgamation())
    with pytest.raises(UsageError, match="correspondence-conv"):
        task.train(several(2), made(12)[1])


def test_the_attention_feature_joins_unweighted() -> None:
    features = several(2)
    attention = torch.randn(12, 5, 4, 4, generator=torch.Generator().manual_seed(4))
    amalgam = Amalgamation()({**features, "map": attention}, 0)
    given = amalgam({**features, "map": attention})
    assert list(given) == ["fine", "coarse", "map"] and amalgam.channels == {
        "fine": 18,
        "coarse": 12,
        "map": 5,
    }
    torch.testing.assert_close(given["map"], Joined.fitted({"map": attention})({"map": attention})["map"])


def test_sources_of_different_shapes_are_refused() -> None:
    features = several(2)
    features["s1|fine"] = features["s1|fine"][:, :3]
    with pytest.raises(ConfigurationError, match="one shape, and s1"):
        Amalgamation()(features, 0)
    with pytest.raises(ConfigurationError, match="nothing to amalgamate"):
        Amalgamation()(made(4)[0], 0)
    with pytest.raises(UsageError, match="0 or more"):
        Amalgamation(sparsity=-1)


def test_an_amalgam_that_is_saved_is_the_same(tmp_path: Path) -> None:
    features = several(2)
    amalgam = Amalgamation(per_channel=True)(features, 5)
    save_amalgam(amalgam, tmp_path / "a.safetensors", {"timestep": 50}, [{}, {"w": torch.ones(2)}])
    read, facts, learned = load_amalgam(tmp_path / "a.safetensors")
    assert learned[0] == {} and learned[1]["w"].tolist() == [1, 1]
    assert facts == {"timestep": 50} and read.settings == amalgam.settings
    for layer, x in amalgam(features).items():
        assert torch.equal(read(features)[layer], x)
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigurationError, match="no saved amalgamation"):
        load_amalgam(tmp_path / "b.safetensors")
    with pytest.raises(UsageError, match="There is no file"):
        load_amalgam(tmp_path / "c.safetensors")
