"""The parts that all probes share: folds, maps, masks on a grid, counts, figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, jaccard_score

from gate.errors import ConfigurationError, PluginError
from gate.measure import confusion_error, confusion_margins, confusion_slope
from gate.probe import Probe, grid_mask, label_counts, make_folds, map_counts, probe_map
from gate.sample import Sample, SampleSet


def images(n: int, labels: list[int] | None = None, classes: int = 4) -> SampleSet:
    rng = np.random.default_rng(0)
    labels = labels if labels is not None else [i % classes for i in range(n)]
    samples = tuple(Sample(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), label=y) for y in labels)
    return SampleSet(samples, classes=tuple("abcdefghijklmnop"[:classes]))


def test_folds_hold_out_every_sample_once_in_equal_parts_and_spread_every_label():
    samples = images(40)
    folds = make_folds(samples, 4, seed=3)
    assert len(folds) == 40
    assert folds.n_folds == 4
    labels = np.array([s.label for s in samples])
    held_out = []
    for train, test in folds:
        assert len(test) == 10
        assert set(train) | set(test) == set(range(40))
        assert not set(train) & set(test)
        assert max(np.bincount(labels[test])) - min(np.bincount(labels[test])) <= 1
        held_out.extend(test)
    assert sorted(held_out) == list(range(40))


def test_folds_depend_on_seed_and_samples_not_on_their_order():
    samples = images(24)
    folds = make_folds(samples, seed=0)
    order = np.random.default_rng(1).permutation(24)
    shuffled = dataclasses.replace(samples, samples=tuple(samples[int(i)] for i in order))
    np.testing.assert_array_equal(make_folds(shuffled, seed=0).assignment, folds.assignment[order])
    assert (make_folds(samples, seed=1).assignment != folds.assignment).any()


def test_copies_of_an_image_stay_in_one_fold():
    samples = images(16)
    doubled = dataclasses.replace(samples, samples=samples.samples + samples.samples)
    assignment = make_folds(doubled).assignment
    np.testing.assert_array_equal(assignment[:16], assignment[16:])


def test_labels_rarer_than_folds_are_allowed():
    folds = make_folds(images(12, [0] * 9 + [1, 2, 3]), 4)
    assert np.bincount(folds.assignment).tolist() == [3, 3, 3, 3]


def test_masks_stand_in_for_labels():
    rng = np.random.default_rng(0)
    samples = []
    for i in range(16):
        mask = np.zeros((8, 8), np.uint8)
        mask[2:5, 2:5] = 1 + i % 2
        samples.append(Sample(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), mask=mask))
    folds = make_folds(SampleSet(tuple(samples), mask_classes=("ground", "a", "b")))
    kinds = np.arange(16) % 2
    assert [kinds[test].sum() for _, test in folds] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("samples", "n_folds", "message"),
    [
        (images(7), 4, "at least 8 samples and 7 were given"),
        (images(8, [0] * 8, classes=12), 4, "8 samples cannot cover 12 classes"),
        (images(8), 1, "at least 2 folds"),
        (images(8), 9, "8 different images cannot fill 9 folds"),
    ],
)
def test_refusals_say_what_to_do(samples, n_folds, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        make_folds(samples, n_folds)
    assert error.value.exit_code == 3


def features(b: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    sizes = {"deep": (7, 4), "middle": (5, 16), "shallow": (3, 32)}
    return {name: torch.randn(b, c, side, side, generator=rng) for name, (c, side) in sizes.items()}


def test_probe_map_gives_every_layer_of_every_sample_unit_rms():
    maps = probe_map(features())
    assert maps.shape == (5, 15, 16, 16)
    assert maps.dtype == torch.float32
    for block in maps.split([7, 5, 3], dim=1):
        torch.testing.assert_close(block.square().mean(dim=(1, 2, 3)), torch.ones(5))


def test_probe_map_takes_areas_down_and_interpolates_up():
    f = features()
    blocks = probe_map(f).split([7, 5, 3], dim=1)
    shallow = f["shallow"].reshape(5, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    for got, expected in zip(blocks[1:], (f["middle"], shallow), strict=True):
        torch.testing.assert_close(got, expected / expected.square().mean(dim=(1, 2, 3), keepdim=True).sqrt())
    up = F.interpolate(f["deep"], scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(blocks[0], up / up.square().mean(dim=(1, 2, 3), keepdim=True).sqrt())


def test_probe_map_is_batch_independent_and_blind_to_scale():
    f = features()
    whole = probe_map(f)
    for i in range(5):
        one = probe_map({k: v[i : i + 1] for k, v in f.items()})
        torch.testing.assert_close(one[0], whole[i])
    torch.testing.assert_close(probe_map({k: 0.3 * v for k, v in f.items()}), whole)
    assert (probe_map({"dead": torch.zeros(2, 3, 8, 8)}) == 0).all()
    assert torch.isnan(probe_map({"broken": torch.full((1, 3, 8, 8), torch.nan)})).all()


@pytest.mark.parametrize("grid", [(16, 16), (5, 7), (1, 1), (48, 40)])
def test_grid_mask_is_the_majority_under_area_pooling(grid):
    mask = np.random.default_rng(0).integers(-1, 3, (32, 24))
    votes = F.one_hot(torch.from_numpy(np.where(mask < 0, 3, mask)), 4).permute(2, 0, 1).double()
    share = F.adaptive_avg_pool2d(votes, grid).numpy()
    got = grid_mask(mask, grid, 3)
    chosen = np.take_along_axis(share, np.where(got < 0, 3, got)[None], axis=0)[0]
    np.testing.assert_allclose(chosen, share.max(axis=0))


def test_grid_mask_ties_and_unlabelled_by_hand():
    mask = np.array([[0, 2, -1, -1], [2, 0, 1, 1], [-1, -1, 1, 2], [-1, 1, 2, 2]])
    assert grid_mask(mask, (2, 2), 3).tolist() == [[0, 1], [-1, 2]]


def figure(counts, name):
    return 1 - confusion_error(confusion_margins(counts), name)


def test_figures_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (6, 50))
    predicted = np.where(rng.random((6, 50)) < 0.6, truth, rng.integers(0, 5, (6, 50)))
    counts = map_counts(truth, predicted, 5)
    miou = [jaccard_score(t, p, average="macro") for t, p in zip(truth, predicted, strict=True)]
    recall = [balanced_accuracy_score(t, p) for t, p in zip(truth, predicted, strict=True)]
    np.testing.assert_allclose(figure(counts, "miou"), miou)
    np.testing.assert_allclose(figure(counts, "balanced-accuracy"), recall)
    whole = jaccard_score(truth.ravel(), predicted.ravel(), average="macro")
    assert figure(counts.sum(axis=0), "miou") == pytest.approx(whole)


def test_classes_that_do_not_occur_are_not_averaged_over():
    counts = np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]])
    assert figure(counts, "balanced-accuracy") == pytest.approx((3 / 4 + 1) / 2)
    assert figure(counts, "miou") == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert figure(np.ones((2, 7, 3, 3)), "miou").shape == (2, 7)


def test_counts_leave_untested_positions_out():
    truth, predicted = np.array([[0, -1, 1], [-1, -1, -1]]), np.array([[0, 1, 0], [0, 0, 1]])
    counts = map_counts(truth, predicted, 2)
    assert counts.tolist() == [[[1, 0], [1, 0]], [[0, 0], [0, 0]]]
    assert label_counts(np.array([1, 0]), np.array([0, 0]), 2).tolist() == [
        [[0, 0], [1, 0]],
        [[1, 0], [0, 0]],
    ]


def test_a_probe_without_facts_or_method_is_refused_where_it_is_written():
    with pytest.raises(PluginError, match="'bare' does not state its summary or source"):
        type("Bare", (Probe,), {"name": "bare"})
    with pytest.raises(PluginError, match="must define `evaluate`"):
        type("Idle", (Probe,), {"name": "idle", "summary": "s", "source": "s"})


@pytest.mark.parametrize("figure", ["miou", "balanced-accuracy"])
def test_the_slope_of_a_figure_is_its_derivative_by_the_counts(figure):
    counts = np.random.default_rng(0).integers(1, 9, (4, 4)).astype(float)
    counts[2] = 0  # a class that the truth does not hold
    got = confusion_slope(counts, figure)
    margins = confusion_margins(counts)
    for i in (0, 1, 3):
        for j in range(4):
            moved = margins.copy()
            moved[1, j] += 1e-6  # predicted, the truth unchanged
            moved[2, j] += 1e-6 * (i == j)
            difference = confusion_error(moved, figure) - confusion_error(margins, figure)
            assert got[i, j] == pytest.approx(difference / 1e-6, abs=1e-6)
